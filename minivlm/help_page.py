"""The look of a command's help: plain sections, one for each panel of options, and examples at the end.

No library that draws frames is imported for it: that would take longer than all the rest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
_KINDS = {"str": "TEXT", "int": "N", "float": "X"}
_KIND = re.compile(r" *<([^>]*)>| *\[(?:\d|x>|x<)[^\]]*\](?=$| /|, -)")
_RANGE = re.compile(r" \[[\d.<=]*x[<>=\d.]*\]$|; [\d.<=]*x[<>=\d.]*(\])$")
_WIDEST_NAME = 34  # characters: longer ones get a line of their own


class HelpPage:
    """Mixed into a command: its options by panel, without the types of the program's own language.

    Attributes:
        examples: Pairs of a command line and what it is for.
    """

    examples: Sequence[tuple[str, str]] = ()

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What follows the command's name: `[OPTIONS] TARGET [FILE]...`."""
        pieces = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [re.sub(r"[{}]", "", piece).upper() for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments, options by panel, and the list of commands where there is one."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):  # type: ignore[attr-defined]
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                title = "Arguments" if parameter.param_type_name == "argument" else panel
                name = _name(record[0])
                if title == "Arguments":
                    name = name.partition(" ")[0].strip("[].").upper()
                sections.setdefault(title, []).append((name, _words(record[1])))
        if len(sections["Options"]) == 1:  # only --help: behind all others
            sections["Options"] = sections.pop("Options")
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=_WIDEST_NAME)
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes the examples; a command is never broken over lines."""
        if not self.examples:
            return
        with formatter.section("Examples"):
            for line, purpose in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
                formatter.indent()
                formatter.write_text(purpose)
                formatter.dedent()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes each command with its whole first sentence."""
        if not hasattr(self, "list_commands"):
            return
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)  # type: ignore[attr-defined]
            rows.append((name, " ".join((command.help or "").partition("\n\n")[0].split())))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class HelpGroup(HelpPage, TyperGroup):
    """The list of commands."""


def help_command(*examples: tuple[str, str]) -> type[TyperCommand]:
    """The class of a command with these examples."""
    return type("Command", (HelpPage, TyperCommand), {"examples": examples})


def _words(text: str) -> str:
    """The help text on one line, without the range of numbers that Typer adds to it."""
    return _RANGE.sub(lambda match: match[1] or "", " ".join(text.split()))


def _name(text: str) -> str:
    """`--depth <str>` as `--depth TEXT`: what kind of value, in a word."""
    return _KIND.sub(lambda match: _kind(match[1]), text)


def _kind(name: str | None) -> str:
    if name in (None, "bool"):
        return ""
    inner = re.sub(r"^list\[(.*)\]$", r"\1", name).removesuffix(" range")
    return f" {_KINDS.get(inner, inner.upper())}"
