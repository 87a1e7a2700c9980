"""Findings in a plot: numbered flags where they happened, and a key at the foot."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmdoctor.runs.plots.style import EDGE, Theme

KEY_LINES = 6
SLOTS = 30


@dataclass(frozen=True)
class Mark:
    """A finding as the plots show it: a numbered flag at its first step, and a line in the key below."""

    step: int | None
    severity: str
    rule: str
    code: str
    message: str

    @classmethod
    def of(cls, finding: Any) -> Mark:
        """A mark of a `Finding`, or of the row of one in `run.jsonl`."""
        row = finding if isinstance(finding, Mapping) else finding.to_dict()
        return cls(row.get("step"), *(str(row.get(k) or "") for k in ("severity", "rule", "code", "message")))


def flags(figure: Figure, panels: Sequence[Axes], marks: Sequence[Mark], theme: Theme) -> None:
    """A line through all panels where each finding first held, its number on top, and a key at the foot."""
    first, last = panels[0].get_xlim()
    crowds: dict[int, list[tuple[int, Mark]]] = {}
    for number, mark in enumerate(_listed(marks), 1):
        if mark.step is not None:
            colour = _colour(mark, theme)
            for axes in panels:
                axes.axvline(mark.step, color=colour, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1.5)
            slot = int((mark.step - first) / max(last - first, 1) * SLOTS)
            near = next((other for other in crowds if abs(other - slot) <= 1), slot)
            crowds.setdefault(near, []).append((number, mark))
    # A flag over the panel's title sits above it.
    title = len(panels[0].get_title(loc="left")) * SLOTS / 90
    for slot, crowd in crowds.items():
        worst = min((mark for _, mark in crowd), key=lambda mark: mark.severity != "error")
        colour = _colour(worst, theme)
        panels[0].annotate(
            " ".join(str(number) for number, _ in crowd),
            (sum(mark.step or 0 for _, mark in crowd) / len(crowd), 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 20 if slot < title else 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            fontweight="bold",
            color=theme.paper,
            bbox={
                "boxstyle": "circle,pad=0.22" if len(crowd) == 1 else "round,pad=0.3,rounding_size=0.7",
                "facecolor": colour,
                "edgecolor": colour,
            },
            annotation_clip=False,
        )
    _key(figure, marks, theme)


def _colour(mark: Mark, theme: Theme) -> str:
    return theme.error if mark.severity == "error" else theme.warning


def _listed(marks: Sequence[Mark]) -> Sequence[Mark]:
    """Those that the key has room for; findings come with the worst first."""
    return marks if len(marks) <= KEY_LINES else marks[: KEY_LINES - 1]


def _key(figure: Figure, marks: Sequence[Mark], theme: Theme) -> None:
    height = figure.get_figheight()
    lines = _listed(marks)
    for row, mark in enumerate(lines):
        y = (key_inches(marks) - 0.22 - 0.21 * row) / height
        when = "" if mark.step is None else f"step {mark.step:,}: "
        text = textwrap.shorten(f"{when}{mark.message}", 118, placeholder=" …")
        bold: dict[str, Any] = {"fontsize": 9, "fontweight": "bold", "color": _colour(mark, theme)}
        figure.text(EDGE, y, f"{row + 1}  {mark.severity}", **bold)
        figure.text(EDGE + 0.08, y, text, fontsize=9, color=theme.ink)
        figure.text(0.985, y, f"{mark.rule} {mark.code}", fontsize=8.5, color=theme.muted, ha="right")
    if len(lines) < len(marks):
        y = (key_inches(marks) - 0.22 - 0.21 * len(lines)) / height
        rest = f"and {len(marks) - len(lines)} more, in report.html"
        figure.text(EDGE + 0.08, y, rest, fontsize=9, color=theme.muted)


def key_inches(marks: Sequence[Mark]) -> float:
    """How much room the key of the findings takes at the foot of the figure."""
    return 0.21 * min(len(marks), KEY_LINES) + 0.1 if marks else 0.0
