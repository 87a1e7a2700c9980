"""Output formats: snapshots of one report, and what must hold of any report."""

import dataclasses
import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmdoctor import reporters
from vlmdoctor.coverage import Coverage
from vlmdoctor.errors import FindingsError, UserError
from vlmdoctor.finding import Finding, Fix, Proof, Severity, plain
from vlmdoctor.plain_text import plain_line
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import summary_line
from vlmdoctor.reporters.full import render

SNAPSHOTS = Path(__file__).parent / "snapshots"

REPORT = Report(
    command="check",
    target="my_model.py:build",
    findings=(
        Finding(
            message="the image never reaches the loss",
            severity=Severity.ERROR,
            at=("vision_encoder (12 tensors)", "vision_proj (2 tensors)"),
            file="my_model.py",
            line=88,
            measured={"loss": 4.5946, "loss_blank": 4.5946, "moved": False},
            threshold={"difference": 1e-6},
            cause="the features are copied in through .data, which leaves no graph",
            proof=Proof("the features written by masked_scatter", "0 of 14 tensors learn", "14 of 14 learn"),
            fix=Fix("write them with masked_scatter:", ("x = x.masked_scatter(mask, features)",)),
            links=("https://github.com/QwenLM/Qwen-VL/issues/124",),
            symptoms=("the loss does not fall",),
            rule="image-cut-off",
            code="GRAD210",
        ),
        Finding(
            message="the gradient norm grows",
            severity=Severity.WARNING,
            at=("language",),
            measured={"norms": [1.0, 2.5, float("inf")], "by_role": {"head": 0.25}},
            step=120,
            rule="exploding-gradient",
            code="GRAD203",
        ),
    ),
    ran=("exploding-gradient", "image-cut-off", "rope-table-dim"),
    skipped=(("weights-loaded", "no checkpoint given"),),
    seconds=2.8,
)


@pytest.mark.parametrize("name", reporters.names())
def test_snapshot(name, monkeypatch):
    monkeypatch.setattr("vlmdoctor.rulebook.all_rules", tuple)  # the texts of real rules change
    text = reporters.reporter(name).render(REPORT, color=False, verbose=True, quiet=False, width=100)
    path = SNAPSHOTS / f"report.{name}.txt"
    if os.environ.get("VLMDOCTOR_UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_format_is_found_and_an_unknown_one_is_refused():
    assert {"full", "json"} <= set(reporters.names())
    with pytest.raises(UserError, match="no output format 'xml'"):
        reporters.reporter("xml")


def test_json_keeps_the_contract():
    data = json.loads(
        reporters.reporter("json").render(REPORT, color=False, verbose=False, quiet=False, width=80)
    )
    assert {
        *("schema_version", "tool", "command", "target", "verdict", "findings"),
        *("ran", "skipped", "crashed", "facts", "seconds"),
    } <= set(data)
    assert data["schema_version"] == 1
    assert data["tool"]["name"] == "vlmdoctor"
    assert data["verdict"] == "fail"
    assert data["skipped"] == [{"rule": "weights-loaded", "reason": "no checkpoint given"}]
    first = data["findings"][0]
    assert {
        *("rule", "code", "severity", "message", "at", "file", "line", "measured", "threshold"),
        *("cause", "certainty", "proof", "fix", "links"),
    } <= set(first)
    assert first["fix"]["commands"] == ["x = x.masked_scatter(mask, features)"]
    assert data["findings"][1]["measured"]["norms"] == [1.0, 2.5, "inf"]


@pytest.mark.parametrize("width", [20, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width):
    text = reporters.reporter("full").render(REPORT, color=False, verbose=True, quiet=False, width=width)
    assert max(map(len, text.splitlines())) <= max(width, 40)


def test_colour_is_never_the_only_carrier():
    plain_text = reporters.reporter("full").render(REPORT, color=False, verbose=False, quiet=False, width=90)
    coloured = reporters.reporter("full").render(REPORT, color=True, verbose=False, quiet=False, width=90)
    assert "\x1b[" not in plain_text
    assert "\x1b[" in coloured
    assert "✗ error" in plain_text
    assert "! warning" in plain_text


@given(st.text(alphabet=string.printable + "é✓[]<>&\x1b"))
def test_any_message_survives_every_format(message):
    finding = dataclasses.replace(REPORT.findings[0], message=message, cause=message, at=(message,))
    report = dataclasses.replace(REPORT, findings=(finding,))
    for name in reporters.names():
        text = reporters.reporter(name).render(report, color=False, verbose=True, quiet=False, width=80)
        if name == "json":
            assert json.loads(text)["findings"][0]["message"] == plain_line(message)
        if name == "html":
            assert "<script" not in text


def test_plain_makes_json_of_anything():
    assert json.dumps(plain({"a": (1, {2.0}), "b": float("nan"), 3: Path("x")}), allow_nan=False)


def report_with(*severities, ran=("a",), crashed=(), fail_on="error"):
    findings = tuple(Finding(message="m", severity=s) for s in severities)
    return Report("check", "t", findings=findings, ran=ran, crashed=crashed, fail_on=fail_on)


@pytest.mark.parametrize(
    ("report", "status", "verdict"),
    [
        (report_with(), 0, "pass"),
        (report_with(Severity.WARNING), 0, "pass"),
        (report_with(Severity.ERROR), 1, "fail"),
        (report_with(Severity.WARNING, fail_on="warning"), 1, "fail"),
        (report_with(Severity.ERROR, fail_on="never"), 0, "pass"),
        (report_with(ran=()), 2, "incomplete"),
        (report_with(crashed=(("b", "ValueError: x"),)), 2, "incomplete"),
    ],
)
def test_exit_status_and_verdict(report, status, verdict):
    assert report.exit_status == status
    assert report.verdict == verdict


def test_raise_for_findings():
    report_with(Severity.WARNING).raise_for_findings()
    with pytest.raises(FindingsError, match="! warning m"):
        report_with(Severity.WARNING).raise_for_findings(fail_on="warning")
    with pytest.raises(FindingsError, match="incomplete: no check ran"):
        report_with(ran=()).raise_for_findings()


def test_a_notebook_shows_the_findings():
    assert "the image never reaches the loss" in REPORT._repr_html_()


def test_the_summary_counts_findings_and_checks():
    ran, skipped = ("a",) * 91, (("b", "needs --depth steps"),) * 62
    clean = Report(command="check", target="t", ran=ran, skipped=skipped, seconds=5.94)
    assert summary_line(clean) == "✓ 0 errors, 0 warnings · 91 checks, 62 skipped · 5.9 s"
    assert summary_line(REPORT).startswith("✗ 1 error, 1 warning · 3 checks, 1 skipped · ")
    one = Report(command="check", target="t", ran=("a",))
    assert summary_line(one) == "✓ 0 errors, 0 warnings · 1 check · 0.0 s"


def test_the_summary_says_why_there_is_no_verdict():
    crashed = Report(command="check", target="t", ran=("a",), crashed=(("b", "KeyError: 1"),))
    assert summary_line(crashed).startswith("! incomplete: b could not run: KeyError: 1 · ")
    nothing = Report(command="check", target="t", skipped=(("a", "needs a tokenizer"),))
    assert summary_line(nothing).startswith("! incomplete: no check ran (needs a tokenizer) · ")
    cut = Report(command="check", target="t", ran=("a",), incomplete="the budget of 5 s ran out")
    assert (cut.verdict, cut.exit_status) == ("incomplete", 2)
    assert summary_line(cut).startswith(
        "! incomplete: the budget of 5 s ran out · nothing found so far · 1 check"
    )


def test_the_summary_names_what_was_not_judged():
    answers = (
        Coverage("image use", "does it see its images?", True),
        Coverage("label masking", "are prompts masked?", False, "no tokenizer", "tokenizer"),
        Coverage("pixel scale", "are the pixels scaled?", False, "no processor", "processor"),
        Coverage("loaded weights", "do they come from it?", False, "no processor", "processor"),
    )
    report = Report(command="check", target="t", ran=("a",), coverage=answers)
    assert (
        " · not judged: label masking (no tokenizer), pixel scale, loaded weights (no processor) · "
        in summary_line(report)
    )
    assert report.to_dict()["coverage"][1] == {
        "topic": "label masking",
        "question": "are prompts masked?",
        "answered": False,
        "reason": "no tokenizer",
        "needs": "tokenizer",
    }


def test_a_report_is_printed_as_its_cards_and_shown_as_one_line():
    assert str(REPORT) == render(REPORT, color=False, verbose=False, quiet=False, width=100).rstrip()
    assert "\n" not in repr(REPORT)
    assert repr(REPORT).startswith("<Report of ")
