"""The report for a person at a terminal: each finding with where, what was measured, why, proof and fix."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vlmdoctor.contract import shown
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.plain_text import plain_line, shown_integer, without_commands
from vlmdoctor.report import Report
from vlmdoctor.reporters.dry_run import print_dry_run

# A glyph and a word: colour is never the only carrier of meaning.
GLYPHS = {Severity.ERROR: "✗", Severity.WARNING: "!", Severity.INFO: "i"}
STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold blue"}


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """The report as text, `width` columns wide, with ANSI colours where `color`."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=max(width, 40),
        force_terminal=color,
        color_system="auto" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for finding in report.findings:
        _print_finding(console, finding)
        console.print()
    if not quiet and "dry_run" in report.facts:
        print_dry_run(console, report.facts["dry_run"])
    if verbose:
        _print_contract(console, report)
        _print_unrun(console, report)
    if not quiet and "dry_run" not in report.facts:
        _print_made(console, report)
    if not quiet:
        for text in report.facts.get("not_followed", ()):
            console.print(Text(f"note     {text}", style="dim"))
        console.print(_closing(report, console.width, verbose))
    # Rich pads cells with blanks, which only get in the way of copying.
    return without_commands("\n".join(line.rstrip() for line in stream.getvalue().split("\n")))


def _print_finding(console: Console, finding: Finding) -> None:
    style = STYLES[finding.severity]
    heading = Text.assemble((f"{GLYPHS[finding.severity]} {finding.severity:<7} ", style))
    label = Text(f"{finding.rule} {finding.code}", style="dim")
    message = Text(finding.message, style="bold")
    first = Table.grid(expand=True)
    first.add_column(no_wrap=True)
    first.add_column(ratio=1)
    first.add_column(no_wrap=True, justify="right")
    if console.width >= 80:
        first.add_row(heading, message, Text("  ") + label)
    else:
        first.add_row(heading, message, "")
    console.print(first)
    body = Table.grid(padding=(0, 2))
    body.add_column(no_wrap=True, style="dim")
    body.add_column()
    for name, value in finding_rows(finding):
        body.add_row(name, Text(value))
    console.print(Padding(body, (0, 0, 0, 4)))


def finding_rows(finding: Finding) -> Iterator[tuple[str, str]]:
    """The labelled lines under a finding's message: where, measured, expected, why, proof, fix."""
    where = ", ".join(finding.at)
    if finding.file is not None:
        source = f"{finding.file}:{finding.line}" if finding.line else finding.file
        where = f"{where}  ({source})" if where else source
    if finding.step is not None:
        where = f"{where}  from step {finding.step}" if where else f"from step {finding.step}"
    if where:
        yield "at", where
    if finding.measured:
        yield "measured", _values(finding.measured)
    if finding.threshold:
        yield "expected", _values(finding.threshold)
    if finding.cause:
        yield "why", finding.cause
    if finding.proof:
        proof = finding.proof
        worked = "" if proof.works else "; that did not help"
        yield (
            ("proof" if proof.works else "tried"),
            (f"with {proof.tried}: {proof.after} (before: {proof.before}){worked}"),
        )
    for symptom in finding.symptoms:
        yield "so", symptom
    if finding.fix:
        yield "fix", "\n".join([finding.fix.text, *(f"  {line}" for line in finding.fix.commands)])
    if finding.links:
        yield "see", "\n".join(finding.links)
    yield "more", f"vlmdoctor rule {finding.rule}"


def _values(values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in dict(values).items())


def _value(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        shown = ", ".join(_value(item) for item in value[:6])
        return f"[{shown}{', …' if len(value) > 6 else ''}]"
    if hasattr(value, "items"):
        return "{" + ", ".join(f"{name}: {_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, int):
        return shown_integer(value)
    return plain_line(str(value)) or '""'


def _print_contract(console: Console, report: Report) -> None:
    """What the run is meant to be, and where that was not written down, what it seems to be."""
    terms = report.facts.get("contract")
    if not terms:
        return
    table = Table.grid(padding=(0, 2))
    for key, text in shown(terms["expected"], terms["seen"]).items():
        table.add_row(Text("contract", style="dim"), Text(key), Text(text))
    console.print(table)
    console.print()


def _print_unrun(console: Console, report: Report) -> None:
    rows = [("skipped", name, reason) for name, reason in report.skipped]
    rows += [("crashed", name, error) for name, error in report.crashed]
    not_kept = report.facts.get("not_kept", ())
    rows += [("not kept", "", f"{one['at']}: {one['why']}") for one in not_kept]
    if not rows:
        return
    table = Table.grid(padding=(0, 2))
    for kind, name, reason in rows:
        table.add_row(Text(kind, style="dim"), Text(name), Text(reason, style="dim"))
    console.print(table)
    console.print()


def closing_line(report: Report, *, hint: bool = False) -> str:
    """`1 error: 31 checks ran, 6 skipped`; with `hint`, also which option lists the skipped ones."""
    counts = Counter(finding.severity for finding in report.findings)
    found = [_count(counts[s], s.value) for s in reversed(Severity) if counts[s]]
    outcome = ", ".join(found) or ("Could not run" if report.exit_status == 2 else "No issues")
    parts = [f"{_count(len(report.ran), 'check')} ran"]
    if report.skipped:
        parts.append(f"{len(report.skipped)} skipped{' (`-v` lists why)' if hint else ''}")
    if report.crashed:
        parts.append(f"{len(report.crashed)} could not run ({', '.join(name for name, _ in report.crashed)})")
    return f"{outcome}: {', '.join(parts)}"


def _print_made(console: Console, report: Report) -> None:
    """What a checkpoint folder did not hold, so that it was made up."""
    batch, weights = report.facts.get("batch"), report.facts.get("weights", "safetensors")
    if batch and weights != "safetensors":
        console.print(Text(f"weights  {weights}", style="dim"))
    if batch:
        how = f"batch    {batch}; a function that returns (model, batch) would bring your own"
        console.print(Text(how, style="dim"))


def _closing(report: Report, width: int, verbose: bool) -> Text:
    style = {"pass": "green", "fail": "red", "incomplete": "yellow"}[report.verdict]
    line, seconds = closing_line(report, hint=not verbose), f"{report.seconds:.1f} s"
    gap = width - len(line) - len(seconds)
    return Text.assemble((line, style), " " * gap if gap >= 2 else "  ", (seconds, "dim"))


def _count(number: int, noun: str) -> str:
    if noun == "info":
        return f"{number} info"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
