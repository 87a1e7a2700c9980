"""`vlmdoctor rules`: every rule with what it finds."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vlmdoctor.errors import UserError
from vlmdoctor.rulebook import all_rules


def command(
    output_format: Annotated[str, typer.Option(help="One of: full, json.", metavar="FORMAT")] = "full",
) -> None:
    """List every rule with its code and what it finds."""
    if output_format == "json":
        rows = [{"rule": r.name, "code": r.code, "summary": r.summary} for r in all_rules()]
        print(json.dumps(rows, indent=2))
        return
    if output_format != "full":
        raise UserError(f"there is no output format '{output_format}' here; choose full or json.")
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for candidate in all_rules():
        table.add_row(candidate.code, candidate.name, candidate.summary)
    console = Console(highlight=False)
    console.print(table)
    console.print("\n[dim]vlmdoctor rule NAME explains one.[/dim]")
