"""The findings as annotations of a GitHub Actions job: they appear beside the lines of a pull request."""

from __future__ import annotations

from collections import Counter

from vlmdoctor.finding import Finding, Severity
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import rows_of, summary_line, withdrawn_lines

COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}
# GitHub shows about so many of each severity for one step, and drops the others without a word.
SHOWN = 10
TITLE = 160  # characters of a title: GitHub shows one line of it


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """One `::error file=,line=,title=::text` for each finding; past GitHub's limit, plain lines."""
    lines = [
        _command("error", {"title": f"{name} crashed"}, f"could not run: {error}")
        for name, error in report.crashed
    ]
    if not lines and report.verdict == "incomplete" and (reason := report.why_incomplete) is not None:
        lines.append(_command("error", {"title": "incomplete"}, reason))
    shown = Counter({Severity.ERROR: len(lines)})
    for finding in sorted(report.findings, key=lambda f: -f.severity.rank):
        shown[finding.severity] += 1
        if shown[finding.severity] <= SHOWN:
            lines.append(_annotation(finding))
        else:
            lines.append(_plain(f"{finding.severity}: {finding.message} [{finding.rule} {finding.code}]"))
    lines += [_plain(line) for line in withdrawn_lines(report)]
    if not quiet:
        lines.append(_plain(summary_line(report)))
    return "".join(line + "\n" for line in lines)


def _annotation(finding: Finding) -> str:
    properties = {}
    if finding.file is not None:
        properties["file"] = finding.file.replace("\\", "/")
        if finding.line is not None:
            properties["line"] = str(finding.line)
    properties["title"] = f"{finding.message[:TITLE]} ({finding.rule} {finding.code})"
    rows = [f"{name}: {value}" for name, value in rows_of(finding, verbose=False)]
    return _command(COMMANDS[finding.severity], properties, "\n".join(rows))


def _command(name: str, properties: dict[str, str], text: str) -> str:
    given = ",".join(
        f"{key}={_escaped(value).replace(':', '%3A').replace(',', '%2C')}"
        for key, value in properties.items()
    )
    return f"::{name} {given}::{_escaped(text)}"


def _escaped(text: str) -> str:
    """`text` on one line, as the runner's command parser takes it back apart."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _plain(text: str) -> str:
    """`text` as one line that the runner does not take for a command."""
    line = " ".join(text.split())
    return line.replace("::", ": :").replace("##[", "# #[")
