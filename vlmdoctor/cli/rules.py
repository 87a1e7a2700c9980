"""`vlmdoctor rules`: every rule with what it finds, by area."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Annotated

import typer

from vlmdoctor.cli.completion import complete_rules
from vlmdoctor.errors import UserError
from vlmdoctor.rulebook import Rule, all_rules, area_title, of_area, suggestion

EXAMPLES = (
    ("vlmdoctor rules GRAD", "Those of an area."),
    ("vlmdoctor rules mask pad", "Those with both words in name or text."),
)


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="AREA|WORD",
            help="The letters of an area, or words that occur in a rule's name or text; all have to fit.",
            autocompletion=complete_rules,
        ),
    ] = None,
    output_format: Annotated[str, typer.Option(help="One of: full, json.", metavar="FORMAT")] = "full",
) -> None:
    """List the rules by area, each with its code and what it finds."""
    if output_format not in ("full", "json"):
        raise UserError(f"there is no output format '{output_format}' here; choose full or json.")
    found = [one for one in all_rules() if all(_fits(one, word) for word in words or ())]
    if not found:
        sought = " and ".join(f"'{word}'" for word in words or ())
        hint = suggestion((words or [""])[0])
        raise UserError(f"no rule fits {sought}{hint}; 'vlmdoctor rules' lists them all.")
    if output_format == "json":
        print(json.dumps([{"rule": r.name, "code": r.code, "summary": r.summary} for r in found], indent=2))
        return
    print_list(found)


def _fits(candidate: Rule, word: str) -> bool:
    if of_area(word):
        return candidate.area == word.upper()
    return (
        candidate.is_called(word)
        or word.lower() in f"{candidate.name} {candidate.code} {candidate.doc}".lower()
    )


def print_list(rules: Iterable[Rule]) -> None:
    """A heading for each area, and below it a rule's code, name and first line."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for area, members in itertools.groupby(rules, key=lambda one: one.area):
        console.print(f"[bold]{area}[/bold]  [dim]{area_title(area)}[/dim]")
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        if console.width >= 110:
            table.add_column(style="bold", no_wrap=True)
            table.add_column()
        else:  # the name above its line: side by side, too little is left for both
            table.add_column()
        for one in members:
            cells = (
                (one.name, one.summary)
                if console.width >= 110
                else (f"[bold]{one.name}[/bold]\n{one.summary}",)
            )
            table.add_row(f"  {one.code}", *cells)
        console.print(table)
        console.print()
    console.print("[dim]vlmdoctor rule NAME explains one.[/dim]")
