"""`vlmdoctor rule NAME`: what a finding means and how to fix it."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from vlmdoctor.cli.completion import complete_rules
from vlmdoctor.cli.rules import print_list
from vlmdoctor.errors import UserError
from vlmdoctor.rulebook import Rule, find_rule, of_area, renamed

EXAMPLES = (
    ("vlmdoctor rule no-gradient", "By its name."),
    ("vlmdoctor rule ROPE101 GRAD201", "Several, by their codes."),
    ("vlmdoctor rule GRAD", "The rules of an area."),
)


def command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Names or codes of rules, or the letters of an area.",
            autocompletion=complete_rules,
        ),
    ],
    output_format: Annotated[str, typer.Option(help="One of: full, json.", metavar="FORMAT")] = "full",
) -> None:
    """Explain a rule: what it finds, why it matters, how sure it is, and the fix."""
    if output_format not in ("full", "json"):
        raise UserError(f"there is no output format '{output_format}' here; choose full or json.")
    found = [(name, of_area(name) or [find_rule(name)]) for name in names]  # before anything is printed
    for old, new in renamed(names).items():
        print(f"vlmdoctor: {old} was renamed to {new}.", file=sys.stderr)
    if output_format == "json":
        pages = [_page(one) for _, rules in found for one in rules]
        one_alone = len(names) == 1 and not of_area(names[0])
        print(json.dumps(pages[0] if one_alone else pages, indent=2))
        return
    for number, (name, rules) in enumerate(found):
        if number:
            print()
        if of_area(name):
            print_list(rules)
        else:
            _explain(rules[0])


def _page(found: Rule) -> dict[str, Any]:
    needs = [evidence.__name__ for evidence, _ in found.requirements.values()]
    page = {"rule": found.name, "code": found.code, "summary": found.summary, "page": found.doc}
    return {**page, "needs": needs, "explains": list(found.explains), "formerly": list(found.formerly)}


def _explain(found: Rule) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(highlight=False)
    console.print(f"[bold]{found.name}[/bold]  [dim]{found.code}[/dim]\n")
    if found.formerly:
        console.print(f"[dim]formerly {', '.join(found.formerly)}[/dim]\n")
    console.print(Markdown(found.doc, hyperlinks=False), width=min(console.width, 100))
