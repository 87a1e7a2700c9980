"""The report for a person at a terminal: a card for each finding, and the summary line."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vlmdoctor.contract import shown
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.plain_text import plain_line, without_commands
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import card_of, rows_of, summary_parts, tone, withdrawn_lines
from vlmdoctor.reporters.dry_run import print_dry_run

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold blue"}
# Columns under which the rule's name gets a line of its own.
NARROW = 80


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
    if not quiet and "dry_run" in report.facts:
        print_dry_run(console, report.facts["dry_run"], verbose)
    for finding in report.findings:
        _print_card(console, finding, verbose)
        console.print()
    if verbose:
        _print_contract(console, report)
        _print_parts(console, report)
        _print_coverage(console, report)
        _print_unrun(console, report)
    if not quiet and "dry_run" not in report.facts:
        _print_made(console, report)
    for line in withdrawn_lines(report):
        console.print(Text(line, style="dim"))
    if not quiet:
        for text in report.facts.get("not_followed", ()):
            console.print(Text(f"note     {text}", style="dim"))
        _print_summary(console, report)
    # Rich pads cells with blanks, which only get in the way of copying.
    return without_commands("\n".join(line.rstrip() for line in stream.getvalue().split("\n")))


def _print_card(console: Console, finding: Finding, verbose: bool) -> None:
    card = card_of(finding)
    heading = Text(f"{card.glyph} {card.severity:<7} ", STYLES[card.severity])
    label = Text(f"{card.name} {card.code}", "dim")
    title = Text(card.title, "bold")
    first = Table.grid(expand=True)
    first.add_column(no_wrap=True)
    first.add_column(ratio=1)
    first.add_column(no_wrap=True, justify="right")
    beside = console.width >= NARROW
    first.add_row(heading, title, Text("  ") + label if beside else "")
    console.print(first)
    body = Table.grid(padding=(0, 2))
    body.add_column(no_wrap=True, style="dim", min_width=6)
    body.add_column()
    rows = list(rows_of(finding, verbose=verbose))
    if not beside:
        rows[-1:-1] = [("rule", label.plain)]
    for name, value in rows:
        body.add_row(name, Text(value))
    console.print(Padding(body, (0, 0, 0, 2)))


def _print_parts(console: Console, report: Report) -> None:
    """What was said or measured of a model without a configuration."""
    parts = report.facts.get("parts")
    if not isinstance(parts, Mapping) or not parts:
        return
    table = Table.grid(padding=(0, 2))
    for part, words in parts.items():
        table.add_row(Text("part", style="dim"), Text(plain_line(str(part))), Text(plain_line(str(words))))
    console.print(table)
    console.print()


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


def _print_made(console: Console, report: Report) -> None:
    """What a checkpoint folder did not hold, so that it was made up."""
    batch, weights = report.facts.get("batch"), report.facts.get("weights", "safetensors")
    if batch and weights != "safetensors":
        console.print(Text(f"weights  {weights}", style="dim"))
    if batch:
        how = f"batch    {batch}; a function that returns (model, batch) would bring your own"
        console.print(Text(how, style="dim"))


def _print_summary(console: Console, report: Report) -> None:
    """The summary, which hangs under itself where it is longer than a line."""
    verdict, *others = summary_parts(report)
    style = {"pass": "green", "fail": "red"}.get(tone(report), "yellow")
    lines = textwrap.wrap(
        " · ".join((verdict, *others)), console.width, subsequent_indent="  ", break_on_hyphens=False
    )
    for i, line in enumerate(lines):
        text = Text(line)
        if i == 0:
            text.stylize(style, 0, len(verdict))
        console.print(text, soft_wrap=True)


def _print_coverage(console: Console, report: Report) -> None:
    """The central questions, answered or with what to hand in."""
    if not report.coverage:
        return
    table = Table.grid(padding=(0, 2))
    for one in report.coverage:
        answer = "answered" if one.answered else f"not judged: hand in {one.needs}"
        table.add_row(Text("question", style="dim"), Text(one.question), Text(answer))
    console.print(table)
    console.print()
