"""The report as SARIF 2.1.0, as GitHub's code scanning and other viewers read it."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import quote

from vlmdoctor import __version__
from vlmdoctor.finding import Finding, Severity, plain
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import rows_of
from vlmdoctor.reporters.json import as_json

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """One run with one result for each finding; what was skipped and crashed as notifications."""
    codes = list(dict.fromkeys(finding.code for finding in report.findings))
    notifications = [_notification("note", name, f"skipped: {why}") for name, why in report.skipped]
    notifications += [_notification("error", name, f"crashed: {error}") for name, error in report.crashed]
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "vlmdoctor",
                        "version": __version__,
                        "semanticVersion": __version__,
                        "rules": [_rule(code, report) for code in codes],
                    }
                },
                "invocations": [
                    {
                        "executionSuccessful": report.verdict != "incomplete",
                        "toolExecutionNotifications": notifications,
                    }
                ],
                "results": [_result(finding, codes, report) for finding in report.findings],
                "columnKind": "unicodeCodePoints",
            }
        ],
    }
    return as_json(log, ensure_ascii=True)


def _rule(code: str, report: Report) -> dict[str, Any]:
    from vlmdoctor.rulebook import all_rules

    first = next(finding for finding in report.findings if finding.code == code)
    described: dict[str, Any] = {"id": code, "name": first.rule}
    for known in all_rules():
        if known.code == code:
            described["shortDescription"] = {"text": known.summary}
            described["help"] = {"text": known.doc, "markdown": known.doc}
    described.setdefault("shortDescription", {"text": first.rule})
    if first.links:
        described["helpUri"] = first.links[0]
    return described


def _result(finding: Finding, codes: list[str], report: Report) -> dict[str, Any]:
    rows = [f"{name}: {value}" for name, value in rows_of(finding)]
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": codes.index(finding.code),
        "level": LEVELS[finding.severity],
        "message": {"text": "\n".join([finding.message, *rows])},
        "partialFingerprints": {"vlmdoctor/v1": _fingerprint(finding)},
        "properties": {"at": list(finding.at), "measured": plain(finding.measured)},
    }
    location = _location(finding, report)
    if location is not None:
        result["locations"] = [location]
    return result


def _location(finding: Finding, report: Report) -> dict[str, Any] | None:
    """Where in the sources: a result with a logical location alone fails GitHub's upload.

    What has no place in a file is shown on the script that was examined, or on no place at all.
    """
    script = report.target.rpartition(":")[0]
    file, line = finding.file, finding.line
    if file is None and script.endswith(".py"):
        file, line = script, 1
    if file is None:
        return None
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(file)}}
    if line is not None:
        physical["region"] = {"startLine": max(1, line)}
    location: dict[str, Any] = {"physicalLocation": physical}
    if finding.at:
        location["logicalLocations"] = [{"fullyQualifiedName": place} for place in finding.at]
    return location


def _uri(file: str) -> str:
    """Relative to the current folder where it lies inside, else absolute; always percent-encoded."""
    path: PurePath = Path(file)
    if path.is_absolute():
        try:
            path = path.relative_to(Path.cwd())
        except ValueError:
            return "file://" + quote(path.as_posix())
    return quote(str(PurePosixPath(*path.parts)) if path.parts else ".")


def _notification(level: str, rule: str, text: str) -> dict[str, Any]:
    return {"level": level, "message": {"text": f"{rule}: {text}"}}


def _fingerprint(finding: Finding) -> str:
    """The same for the same fault in the next run, whatever numbers were measured."""
    words = "\n".join([finding.rule, finding.file or "", *finding.at])
    return hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:32]
