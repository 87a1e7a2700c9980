"""The parts of a step's memory as a bar: rows of blocks in a terminal, one stacked bar on a page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rich.console import Console
from rich.text import Text

from vlmdoctor.reporters.dry_run_answer import amount, parts_of, scale, spans

STYLES = {
    "weights": "blue",
    "gathered": "cyan",
    "optimizer": "magenta",
    "buckets": "cyan",
    "gradients": "yellow",
    "activations": "green",
    "temporary": "bright_black",
}
COLOURS = {
    "weights": "#3b6fb6",
    "gathered": "#2a9db0",
    "optimizer": "#8d5bb5",
    "buckets": "#5cb8b2",
    "gradients": "#d9a21b",
    "activations": "#4a9a4f",
    "temporary": "#8a8a8a",
}
_INDENT, _WIDEST = 4, 100


def print_bar(console: Console, cost: Mapping[str, Any]) -> None:
    """A row for each part, each beginning where the one above ends, and one for the GPU's memory."""
    parts, room = parts_of(cost), _room(cost)
    if not parts:
        return
    name = cost["gpu"]["name"] if "gpu" in cost else ""
    limit = amount(room) if room is not None else ""
    label = max(len(text) for text in (*(part.label for part in parts), name))
    number = max(len(text) for text in (*(part.shown for part in parts), limit))
    width = min(console.width, _WIDEST) - _INDENT - label - number - 4
    if width < 4:  # there is room for numbers only
        width = 0
    for part, start, length in spans(parts, room, max(width, 1)):
        line = Text(f"{'':{_INDENT}}{part.label:<{label}}  {part.shown:>{number}}")
        if width:
            line.append(f"  {' ' * start}").append("█" * length, STYLES.get(part.key, ""))
        console.print(line)
    if room is not None:
        line = Text(f"{'':{_INDENT}}{name:<{label}}  {limit:>{number}}", "dim")
        if width and scale(parts, room) >= room:
            line.append(f"  {'─' * (round(room * width / scale(parts, room)) - 1)}┤")
        console.print(line)


def bar_html(cost: Mapping[str, Any]) -> str:
    """One stacked bar, with a line where the GPU's memory ends, and its legend with the numbers."""
    parts, room = parts_of(cost), _room(cost)
    if not parts:
        return ""
    whole = scale(parts, room)
    stack = "".join(
        f"<span style='width:{100 * part.size / whole:.2f}%;background:{COLOURS[part.key]}'"
        f" title='{escape(part.label)} {part.shown}'></span>"
        for part in parts
    )
    mark = ""
    if room is not None and room <= whole:
        text = f"{escape(cost['gpu']['name'])} {amount(room)}"
        mark = f"<div class='room' style='width:{100 * room / whole:.2f}%'><span>{text}</span></div>"
    legend = "".join(
        f"<li><i style='background:{COLOURS[part.key]}'></i>{escape(part.label)} {part.shown}</li>"
        for part in parts
    )
    said = ", ".join(f"{part.label} {part.shown}" for part in parts)
    return (
        f"<div class='memory'><div class='stack' role='img' aria-label='{escape(said)}'>{stack}</div>"
        f"{mark}</div>"
        f"<ul class='legend'>{legend}<li>= {amount(sum(part.size for part in parts))}</li></ul>"
    )


def _room(cost: Mapping[str, Any]) -> int | None:
    return cost["gpu"]["room"] if "gpu" in cost else None
