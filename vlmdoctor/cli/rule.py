"""`vlmdoctor rule NAME`: what a finding means and how to fix it."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from vlmdoctor.errors import UserError
from vlmdoctor.rulebook import find_rule, renamed


def command(
    name: Annotated[str, typer.Argument(help="The rule's name or code.")],
    output_format: Annotated[str, typer.Option(help="One of: full, json.", metavar="FORMAT")] = "full",
) -> None:
    """Explain a rule: what it finds, why it matters, how sure it is, and the fix."""
    found = find_rule(name)
    for old, new in renamed((name,)).items():
        print(f"vlmdoctor: {old} was renamed to {new}.", file=sys.stderr)
    if output_format == "json":
        needs = [evidence.__name__ for evidence, _ in found.requirements.values()]
        page = {"rule": found.name, "code": found.code, "summary": found.summary, "page": found.doc}
        print(
            json.dumps(
                {**page, "needs": needs, "explains": list(found.explains), "formerly": list(found.formerly)},
                indent=2,
            )
        )
        return
    if output_format != "full":
        raise UserError(f"there is no output format '{output_format}' here; choose full or json.")
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(highlight=False)
    console.print(f"[bold]{found.name}[/bold]  [dim]{found.code}[/dim]\n")
    if found.formerly:
        console.print(f"[dim]formerly {', '.join(found.formerly)}[/dim]\n")
    console.print(Markdown(found.doc, hyperlinks=False), width=min(console.width, 100))
