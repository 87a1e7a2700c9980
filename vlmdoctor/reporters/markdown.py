"""The report as Markdown: for a job summary (`>> $GITHUB_STEP_SUMMARY`), a comment or an issue."""

from __future__ import annotations

import re

from vlmdoctor.finding import Finding
from vlmdoctor.plain_text import without_commands
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import ADDRESS, card_of, summary_line, tone, withdrawn_lines
from vlmdoctor.reporters.dry_run_answer import answer_of

_VERDICTS = {"pass": "✓ pass", "fail": "✗ fail", "incomplete": "! incomplete", "warned": "! pass"}


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """A heading with the verdict, each finding with its rows, and what was skipped."""
    parts = [f"## {_VERDICTS[tone(report)]}: vlmdoctor {_text(report.command)} {_code(report.target)}"]
    if "dry_run" in report.facts:
        parts.append(f"**{_text(answer_of(report.facts['dry_run']).line)}**")
    parts += [_finding(finding) for finding in report.findings]
    parts += [_text(line) for line in withdrawn_lines(report)]
    if report.crashed:
        parts.append(_table("crashed", "error", report.crashed))
    if verbose and report.skipped:
        parts.append(_table("skipped", "reason", report.skipped))
    if not quiet and (needed := [(one.question, one.needs) for one in report.coverage if not one.answered]):
        parts.append(_table("not judged", "hand in", tuple(needed), code=False))
    if not quiet:
        parts.append(_text(summary_line(report)))
    return without_commands("\n\n".join(parts) + "\n")


def _finding(finding: Finding) -> str:
    card = card_of(finding)
    parts = [f"### {card.glyph} {card.severity}: {_text(card.title)}"]
    label = f"{_code(card.name)} {_code(card.code)}"
    where = " in ".join(part for part in (_code(card.place), _text(card.modules)) if part)
    parts.append(f"{label} at {where}" if where else label)
    if card.source:
        parts.append(_fence(card.source))
    if card.cause:
        parts.append(f"**Cause:** {_text(card.cause)}")
    if card.symptoms:
        parts.append("\n".join(f"- also: {_text(symptom)}" for symptom in card.symptoms))
    if card.fix_words:
        parts.append(f"**Fix:** {_text(card.fix_words)}")
    if card.commands:
        parts.append(_fence("\n".join(card.commands)))
    # An address by itself becomes a link; one with anything else in it stays text.
    links = (one if ADDRESS.fullmatch(one) else _text(one) for one in finding.links)
    parts.append("\n".join((f"More: {_code(card.more)}", *(f"- {one}" for one in links))))
    return "\n\n".join(parts)


def _table(first: str, second: str, rows: tuple[tuple[str, str], ...], *, code: bool = True) -> str:
    lines = [f"| {_code(name) if code else _cell(name)} | {_cell(text)} |" for name, text in rows]
    return "\n".join([f"| {first} | {second} |", "|---|---|", *lines])


def _text(text: str) -> str:
    """`text` on one line, with nothing in it that Markdown or HTML would take for its own."""
    line = re.sub(r"[\x00-\x1f\x7f\s]+", " ", text).strip()
    line = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cell(text: str) -> str:
    """Links stay links; lines stay lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "<br>".join(line if ADDRESS.fullmatch(line) else _text(line) for line in lines)


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
