"""The report as JUnit XML, as CI servers read it: each rule is a test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from vlmdoctor.finding import Finding
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import rows_of
from vlmdoctor.reporters.page_parts import inert

# XML 1.0 has no way of writing these, escaped or not.
_IMPOSSIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """One `testcase` for each rule: failed at or above `--fail-on`, skipped and crashed with the reason."""
    suites = ElementTree.Element("testsuites", name="vlmdoctor")
    suite = ElementTree.SubElement(
        suites,
        "testsuite",
        name=_possible(f"vlmdoctor {report.command} {report.target}"),
        time=f"{report.seconds:.3f}",
    )
    by_rule: dict[str, list[Finding]] = {name: [] for name in report.ran}
    for finding in report.findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    failures = 0
    for name, findings in by_rule.items():
        failing = [finding for finding in findings if finding in report.failing]
        milder = [finding for finding in findings if finding not in report.failing]
        case = _case(suite, report, name)
        if failing:
            failures += 1
            _tell(case, "failure", failing)
        if milder:
            ElementTree.SubElement(case, "system-out").text = _possible(_text(milder))
    for name, reason in report.skipped:
        ElementTree.SubElement(_case(suite, report, name), "skipped", message=_possible(reason))
    for name, error in report.crashed:
        ElementTree.SubElement(_case(suite, report, name), "error", message=_possible(error))
    errors = len(report.crashed)
    # Without a crash an incomplete report would be green.
    if not errors and report.verdict == "incomplete" and (why := report.why_incomplete) is not None:
        errors = 1
        ElementTree.SubElement(_case(suite, report, "incomplete"), "error", message=_possible(why))
    counts = {"tests": len(suite), "failures": failures}
    counts |= {"errors": errors, "skipped": len(report.skipped)}
    for element in (suites, suite):
        for key, count in counts.items():
            element.set(key, str(count))
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, "unicode")
    return f"<?xml version='1.0' encoding='utf-8'?>\n{inert(text)}\n"


def _case(suite: ElementTree.Element, report: Report, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=_possible(f"vlmdoctor.{report.command}"), name=_possible(name)
    )


def _tell(case: ElementTree.Element, kind: str, findings: Sequence[Finding]) -> None:
    first = findings[0]
    if first.file is not None:
        case.set("file", _possible(first.file))
        if first.line is not None:
            case.set("line", str(first.line))
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    element = ElementTree.SubElement(
        case, kind, type=_possible(f"{first.severity} {first.code}"), message=_possible(first.message + more)
    )
    element.text = _possible(_text(findings))


def _text(findings: Sequence[Finding]) -> str:
    texts = []
    for finding in findings:
        rows = [f"{name:<8} {value}" for name, value in rows_of(finding)]
        texts.append("\n".join([f"{finding.severity}: {finding.message}", *rows]))
    return "\n\n".join(texts)


def _possible(text: str) -> str:
    return _IMPOSSIBLE.sub("\ufffd", text)
