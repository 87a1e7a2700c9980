"""The picture of whether images are used."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from vlmdoctor.runs.plots.style import LIGHT

ERRORS = 3.0  # standard errors that are drawn


def plot(use: Any) -> Figure:
    """A Figure of an `ImageUse` with the loss, and the accuracy beside it where there is one."""
    names = ("loss", "accuracy")
    columns = [name for name in names if all(getattr(one, name) is not None for one in use.measured)]
    width = 3.6 + 3.6 * max(1, len(columns))
    figure = Figure(figsize=(width, 3.6), layout="constrained", facecolor=LIGHT.paper)
    figure.suptitle(use.sentence, x=0.02, ha="left", color=LIGHT.ink, fontweight="bold")
    for place, name in enumerate(columns):
        axes = figure.add_subplot(1, len(columns), place + 1)
        values = [getattr(one, name) for one in use.measured]
        errors = [ERRORS * (getattr(one, f"{name}_error") or 0.0) for one in use.measured]
        colours = [LIGHT.blue, *[LIGHT.muted] * (len(values) - 1)]
        kinds = [one.images for one in use.measured]
        axes.barh(kinds, values, xerr=errors, color=colours, height=0.6, ecolor=LIGHT.ink, capsize=3)
        for row, value in enumerate(values):
            axes.annotate(f" {value:.3g}", (value + errors[row], row), va="center", color=LIGHT.ink)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        label = "loss per supervised token, nats" if name == "loss" else use.metric
        axes.set_xlabel(label, color=LIGHT.muted)
        axes.tick_params(colors=LIGHT.ink, length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LIGHT.grid)
    return figure
