"""The table of modules as an indented tree, and the totals of its parts, as wide as there is room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

DEPTH = 3  # dotted parts, numbers aside, and a stack of layers below: deeper modules are in the JSON


@dataclass(frozen=True)
class Column:
    """A column, and the width of the terminal from which on it is shown."""

    heading: str
    key: str
    right: bool = True
    from_width: int = 0


COLUMNS = (
    Column("module", "module", right=False),
    Column("class", "kind", right=False, from_width=130),
    Column("parameters", "parameters"),
    Column("in", "shape_in", from_width=100),
    Column("out", "shape_out"),
    Column("kept", "kept"),
    Column("FLOPs", "flops"),
    Column("learns", "learns"),
)
_IN_PAGE = tuple(column for column in COLUMNS if column.key != "kind")  # there it shows on pointing
PARTS = (
    Column("part", "role", right=False),
    Column("parameters", "parameters"),
    Column("share", "share"),
    Column("trainable", "trainable"),
    Column("no gradient", "without"),
)


def module_rows(modules: Any) -> Iterator[dict[str, str]]:
    """The cells of the modules that are worth a line: with parameters, and not too deep."""
    above: list[str] = []  # names of the rows that this one sits in
    for index, module in enumerate(modules):
        name = "" if index == 0 else module["name"]
        depth = sum(part != "*" for part in name.split(".") if part)
        stack = name.endswith("*") and module["count"] > 1
        if (
            depth > DEPTH + stack
            or not module["parameters"]
            or module["kind"] in ("ModuleList", "ModuleDict")
        ):
            continue
        while above and not (above[-1] == "" or name.startswith(f"{above[-1]}.")):
            above.pop()
        short = name[len(above[-1]) + 1 :] if above and above[-1] else name
        count = f" × {module['count']}" if module["count"] > 1 else ""
        trainable, gradient = module["trainable"], module["gradient"]
        yield {
            "module": "  " * len(above) + (short or module["name"]) + count,
            "kind": module["kind"],
            "parameters": counted(module["parameters"]),
            "shape_in": _shape(module["shape_in"]),
            "shape_out": _shape(module["shape_out"]),
            "kept": sized(module["kept"]) if module["shape_out"] else "",
            "flops": counted(module["flops"]) if module["flops"] else "",
            "learns": "frozen" if not trainable else {True: "yes", False: "not all", None: ""}[gradient],
        }
        above.append(name)


def part_rows(parts: Any) -> Iterator[dict[str, str]]:
    """The cells of the roles, and of all together."""
    keys = ("parameters", "trainable", "without_gradient")
    whole = {"role": "all", **{key: sum(part[key] for part in parts) for key in keys}}
    for part in (*parts, whole):
        yield {
            "role": part["role"],
            "parameters": counted(part["parameters"]),
            "share": f"{part['parameters'] / whole['parameters']:.1%}" if whole["parameters"] else "",
            "trainable": counted(part["trainable"]) if part["trainable"] else "frozen",
            "without": counted(part["without_gradient"]) if part["without_gradient"] else "",
        }


def print_tables(console: Console, facts: Mapping[str, Any]) -> None:
    """Both, with the columns that the terminal has room for."""
    _print(console, COLUMNS, list(module_rows(facts["modules"])))
    if facts.get("parts"):
        _print(console, PARTS, list(part_rows(facts["parts"])), total=True)


def tables_html(facts: Mapping[str, Any]) -> str:
    """Both as HTML, in full."""
    parts = list(part_rows(facts["parts"])) if facts.get("parts") else []
    return (
        f"<div class='modules'>{_html(_IN_PAGE, list(module_rows(facts['modules'])))}</div>"
        f"{_html(PARTS, parts, total=True) if parts else ''}"
    )


def _print(
    console: Console, columns: tuple[Column, ...], rows: list[dict[str, str]], total: bool = False
) -> None:
    shown = [column for column in columns if console.width >= column.from_width]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in shown:
        first = column is shown[0]
        table.add_column(
            column.heading,
            justify="right" if column.right else "left",
            no_wrap=not first,
            overflow="ellipsis" if not first else "fold",
        )
    for number, row in enumerate(rows):
        last = total and number == len(rows) - 1
        cells = [Text(row[column.key]) for column in shown]
        if not row[shown[0].key].startswith(" "):
            cells[0].no_wrap, cells[0].overflow = True, "ellipsis"
        table.add_row(*cells, style="bold" if last else "")
    console.print(table)
    console.print()


def _html(columns: tuple[Column, ...], rows: list[dict[str, str]], total: bool = False) -> str:
    head = "".join(f"<th>{column.heading}</th>" for column in columns)
    body = ""
    for number, row in enumerate(rows):
        kind = " class='total'" if total and number == len(rows) - 1 else ""
        kind += f" title='{escape(row['kind'])}'" if "kind" in row else ""
        cells = "".join(
            f"<td{_indent(row[column.key])}>{escape(row[column.key].strip())}</td>" for column in columns
        )
        body += f"<tr{kind}>{cells}</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def _indent(cell: str) -> str:
    depth = (len(cell) - len(cell.lstrip())) // 2
    return f" style='padding-left:{0.6 + depth}rem'" if depth else ""


def _shape(shape: Any) -> str:
    return "×".join(str(size) for size in shape) if shape else ""


def sized(count: float) -> str:
    """Bytes in a unit of their size."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def counted(count: float) -> str:
    """A number in a unit of its size."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
