"""The report as Markdown: for a job summary (`>> $GITHUB_STEP_SUMMARY`), a comment or an issue."""

from __future__ import annotations

import re

from vlmdoctor.finding import Finding
from vlmdoctor.plain_text import without_commands
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import GLYPHS, rows_of, summary_line, withdrawn_lines
from vlmdoctor.reporters.dry_run_answer import answer_of

# A page of a rule; what has brackets, bars or quotes in it might end the link and begin something else.
_LINK = re.compile(r"https?://[\w.~:/?#@!,;=&%+-]+")
_VERDICTS = {"pass": "✓ pass", "fail": "✗ fail", "incomplete": "! could not run"}


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """A heading with the verdict, each finding with its rows, and what was skipped."""
    parts = [f"## {_VERDICTS[report.verdict]}: vlmdoctor {_text(report.command)} {_code(report.target)}"]
    if "dry_run" in report.facts:
        parts.append(f"**{_text(answer_of(report.facts['dry_run']).line)}**")
    parts += [_finding(finding) for finding in report.findings]
    parts += [_text(line) for line in withdrawn_lines(report)]
    if report.crashed:
        parts.append(_table("crashed", "error", report.crashed))
    if verbose and report.skipped:
        parts.append(_table("skipped", "reason", report.skipped))
    if not quiet:
        parts.append(_text(summary_line(report)))
    return without_commands("\n\n".join(parts) + "\n")


def _finding(finding: Finding) -> str:
    heading = f"### {GLYPHS[finding.severity]} {finding.severity}: {_text(finding.message)}"
    label = f"{_code(finding.rule)} {_code(finding.code)}"
    rows, fenced = [], ""
    for name, value in rows_of(finding):
        if name == "fix" and finding.fix is not None:
            rows.append(f"| fix | {_cell(finding.fix.text)} |")
            fenced = "\n\n" + _fence("\n".join(finding.fix.commands)) if finding.fix.commands else ""
        elif name != "more":
            rows.append(f"| {name} | {_cell(value)} |")
    table = "\n".join(["| | |", "|---|---|", *rows])
    return f"{heading}\n\n{label}" + (f"\n\n{table}" if rows else "") + fenced


def _table(first: str, second: str, rows: tuple[tuple[str, str], ...]) -> str:
    lines = [f"| {_code(name)} | {_cell(text)} |" for name, text in rows]
    return "\n".join([f"| {first} | {second} |", "|---|---|", *lines])


def _text(text: str) -> str:
    """`text` on one line, with nothing in it that Markdown or HTML would take for its own."""
    line = re.sub(r"[\x00-\x1f\x7f\s]+", " ", text).strip()
    line = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cell(text: str) -> str:
    """Links stay links; lines stay lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "<br>".join(line if _LINK.fullmatch(line) else _text(line) for line in lines)


def _code(text: str) -> str:
    line = re.sub(r"[\x00-\x1f\x7f\s]+", " ", text).strip()
    ticks = "`" * (_longest_run(line) + 1)
    blank = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{ticks}{blank}{line}{blank}{ticks}".replace("|", "\\|") if line else ""


def _fence(text: str) -> str:
    ticks = "`" * max(3, _longest_run(text) + 1)
    return f"{ticks}\n{text}\n{ticks}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
