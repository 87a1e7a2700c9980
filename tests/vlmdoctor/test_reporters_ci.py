"""The formats that other programs read: GitHub annotations, JUnit, SARIF, Markdown; nasty texts."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdoctor import reporters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.plain_text import plain_line
from vlmdoctor.report import Report

NASTY = 'a|b <script>x</script> ::error:: 100%, `x` ]]> & "q"\r\n\x00\x1b[31m ##[error] # é✓'


def nasty_report(**fields) -> Report:
    finding = Finding(
        NASTY,
        Severity.ERROR,
        at=(NASTY,),
        file="my model, v2:a.py",
        line=3,
        measured={"text": NASTY},
        cause=NASTY,
        fix=Fix(NASTY, ("```", NASTY)),
        rule="some-rule",
        code="GRAD999",
    )
    given = {"command": "check", "target": "a.py:build", "findings": (finding,), "ran": ("some-rule",)}
    return Report(**(given | fields))


def render(name: str, report: Report, **options) -> str:
    given = {"color": False, "verbose": True, "quiet": False, "width": 80} | options
    return reporters.reporter(name).render(report, **given)


def annotations(text: str) -> list[tuple[str, dict[str, str], str]]:
    """What GitHub's runner makes of the lines: (command, properties, message), unescaped."""
    found = []
    for line in text.split("\n"):
        match = re.fullmatch(r"::(\w+) ([^:]*)::(.*)", line, flags=re.DOTALL)
        if match:
            pairs = dict(pair.split("=", 1) for pair in match[2].split(","))
            found.append(
                (
                    match[1],
                    {k: urllib.parse.unquote(v) for k, v in pairs.items()},
                    urllib.parse.unquote(match[3]),
                )
            )
    return found


def test_github_annotations_come_back_as_they_were() -> None:
    ((command, properties, message),) = annotations(render("github", nasty_report()))
    assert command == "error"
    title = f"{plain_line(NASTY)} (some-rule GRAD999)"
    assert properties == {"file": "my model, v2:a.py", "line": "3", "title": title}
    assert message.startswith("at: my model, v2:a.py:3")


def test_github_shows_the_most_severe_first_and_ten_of_each() -> None:
    kinds = [Severity.INFO, Severity.WARNING, Severity.ERROR]
    findings = tuple(
        Finding(f"number {i}", kind, rule="r", code="GRAD999") for kind in kinds for i in range(12)
    )
    text = render("github", nasty_report(findings=findings))
    told = [command for command, _, _ in annotations(text)]
    assert told == ["error"] * 10 + ["warning"] * 10 + ["notice"] * 10
    assert text.count("number 11") == 3  # the rest are plain lines, not lost


def test_github_tells_a_crash() -> None:
    text = render("github", nasty_report(findings=(), crashed=(("some-rule", NASTY),)))
    assert annotations(text)[0][0] == "error"


def test_junit_is_xml_with_one_test_for_each_rule() -> None:
    report = nasty_report(
        ran=("some-rule", "quiet-rule"), skipped=(("skipped-rule", NASTY),), crashed=(("bad-rule", NASTY),)
    )
    suite = ElementTree.fromstring(render("junit", report)).find("testsuite")
    assert suite is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4", "failures": "1", "errors": "1", "skipped": "1"
    }  # fmt: skip
    cases = {case.get("name"): case for case in suite}
    failure = cases["some-rule"].find("failure")
    assert failure is not None and "<script>x</script>" in (failure.get("message") or "")
    assert list(cases["quiet-rule"]) == []
    assert cases["skipped-rule"].find("skipped") is not None
    assert cases["bad-rule"].find("error") is not None


@pytest.mark.parametrize(("fail_on", "failures"), [("error", 0), ("warning", 1), ("never", 0)])
def test_junit_fails_from_fail_on(fail_on: str, failures: int) -> None:
    finding = Finding("m", Severity.WARNING, rule="r", code="GRAD999")
    text = render("junit", nasty_report(findings=(finding,), ran=("r",), fail_on=fail_on))
    assert len(list(ElementTree.fromstring(text).iter("failure"))) == failures
    assert len(list(ElementTree.fromstring(text).iter("system-out"))) == 1 - failures


def check_sarif(log: dict) -> None:
    """What the standard and GitHub's upload require of a log."""
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-2.1.0.json")
    for run in log["runs"]:
        driver = run["tool"]["driver"]
        identifiers = [rule["id"] for rule in driver["rules"]]
        assert driver["name"] and len(set(identifiers)) == len(identifiers)
        for result in run["results"]:
            assert result["message"]["text"]
            assert result["level"] in ("error", "warning", "note")
            assert identifiers[result["ruleIndex"]] == result["ruleId"]
            for location in result.get("locations", ()):
                artifact = location["physicalLocation"]["artifactLocation"]["uri"]
                assert re.fullmatch(r"[A-Za-z0-9/._~%:-]+", artifact)
                assert location["physicalLocation"].get("region", {"startLine": 1})["startLine"] >= 1
        for invocation in run["invocations"]:
            assert isinstance(invocation["executionSuccessful"], bool)


def test_sarif_holds_what_is_required() -> None:
    report = nasty_report(skipped=(("skipped-rule", "no batch"),), crashed=(("bad-rule", NASTY),))
    log = json.loads(render("sarif", report))
    check_sarif(log)
    (result,) = log["runs"][0]["results"]
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "my%20model%2C%20v2%3Aa.py"
    assert location["physicalLocation"]["region"] == {"startLine": 3}
    assert location["logicalLocations"] == [{"fullyQualifiedName": plain_line(NASTY)}]


@pytest.mark.parametrize(("target", "places"), [("train.py:build", ["train.py"]), ("minivlm", [])])
def test_sarif_never_has_a_logical_location_alone(target: str, places: list[str]) -> None:
    finding = Finding("m", Severity.ERROR, at=("lm.layers.0",), rule="r", code="GRAD999")
    log = json.loads(render("sarif", nasty_report(findings=(finding,), target=target)))
    check_sarif(log)
    locations = log["runs"][0]["results"][0].get("locations", [])
    assert [each["physicalLocation"]["artifactLocation"]["uri"] for each in locations] == places


def test_sarif_knows_a_fault_again_by_its_place_and_not_its_numbers() -> None:
    def fingerprint(**change) -> str:
        finding = dataclasses.replace(nasty_report().findings[0], **change)
        log = json.loads(render("sarif", nasty_report(findings=(finding,))))
        return log["runs"][0]["results"][0]["partialFingerprints"]["vlmdoctor/v1"]

    assert fingerprint(measured={"loss": 1.0}, message="m") == fingerprint()
    assert fingerprint(at=("elsewhere",)) != fingerprint()


def test_markdown_lets_nothing_through() -> None:
    text = render("markdown", nasty_report())
    outside = re.sub(r"(`{3,})\n.*?\n\1", "", text, flags=re.DOTALL)
    assert "<script" not in outside and "\x1b" not in outside and "\x00" not in outside
    rows = [line for line in outside.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert "````\n```\n" in text  # the fence is longer than what it holds


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_any_text_makes_a_valid_document(text: str) -> None:
    finding = Finding(
        text, Severity.WARNING, at=(text,), file=text or None, cause=text, rule="r", code="X999"
    )
    report = nasty_report(findings=(finding,), target=text)
    ElementTree.fromstring(render("junit", report))
    check_sarif(json.loads(render("sarif", report)))
    assert len(annotations(render("github", report))) == 1


def test_a_report_without_a_judgement_is_an_error_for_ci() -> None:
    report = Report(command="check", target="t", findings=(), ran=("a",), incomplete="the budget ran out")
    assert report.exit_status == 2
    suites = ElementTree.fromstring(render("junit", report))
    assert suites.get("errors") == "1"
    assert [error.get("message") for error in suites.iter("error")] == ["the budget ran out"]
    (kind, properties, text), *_ = annotations(render("github", report))
    assert (kind, properties["title"], text) == ("error", "incomplete", "the budget ran out")
