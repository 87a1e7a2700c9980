"""`grads.png`: how strongly each part and each layer is pulled, and how far it moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from vlmdoctor.knowledge.parameter_names import role_of
from vlmdoctor.runs.columns import Recording, Series
from vlmdoctor.runs.plots.heat import GREY, cells, colours, painted
from vlmdoctor.runs.plots.marks import Mark, flags, key_inches
from vlmdoctor.runs.plots.style import (
    AXIS_INCHES,
    GAP_INCHES,
    LIGHT,
    RIGHT,
    ROLE_DASHES,
    TOP_INCHES,
    Theme,
    dress,
    heading,
    label_ends,
    new_figure,
    save,
    smooth,
    stack_panels,
    subtitle,
    summarise,
)
from vlmdoctor.runs.schema import GRAD_NORM, UPDATE_RATIO

# Updates of a thousandth of the weights a step are the common aim; a decade to each side is no concern.
HEALTHY_RATIO = (1e-4, 1e-2)
# A log axis over more decades than this is unreadable; what lies lower is drawn at its lower edge.
MOST_DECADES = 8
MOST_SIGNS = 40


def draw_grads(
    recording: Recording, path: Path, *, headline: str, marks: Sequence[Mark] = (), theme: Theme = LIGHT
) -> bool:
    """Draws the gradients of a watched run; False, and no picture, where none were recorded.

    The arguments are those of `draw_loss`.
    """
    if not recording.watched:
        return False
    # In the order of the architecture: the vision tower feeds the language model.
    stacks = sorted(recording.stacks().items(), key=lambda stack: role_of(stack[0]) != "vision")
    heats = [min(max(0.2 * len(layers), 0.5), 2.4) for _, layers in stacks]
    heights = [2.5, *heats, 1.7]
    foot = AXIS_INCHES + key_inches(marks)
    figure = new_figure(TOP_INCHES + sum(heights) + GAP_INCHES * (len(heights) - 1) + foot, theme)
    panels = stack_panels(figure, heights, theme, foot=foot)
    last = max(recording.last_step or 0, 1)
    panels[0].set_xlim(-0.01 * last, last)
    norm_panel(panels[0], recording, theme)
    _heat_panels(figure, panels[1:-1], stacks, last, theme)
    ratio_panel(panels[-1], recording, theme)
    heading(figure, theme, headline, subtitle(recording))
    flags(figure, panels, marks, theme)
    save(figure, path)
    return True


def norm_panel(axes: Axes, recording: Recording, theme: Theme) -> None:
    """The gradient norm of each part, and of all together."""
    clip = recording.config.get("clip")
    dress(axes, theme, title="Gradient norm, before clipping", last=False)
    series = {role: recording.column(GRAD_NORM + role) for role in recording.roles}
    total = recording.column("grad_norm")
    _log_axis(axes, [total, *series.values()])
    labels = _role_curves(axes, series, theme)
    positive = _positive(total)
    if len(positive) and len(series) > 1:
        steps, _, middle, _ = summarise(positive)
        curve = np.exp(smooth(np.log(middle)))
        axes.plot(steps, curve, color=theme.ink, linewidth=1.0, zorder=2)
        labels.append((float(curve[-1]), f"all {_sig(curve[-1])}", theme.ink))
    trainable = {p.role for p in recording.parameters if p.requires_grad}
    bottom = axes.get_ylim()[0]
    labels += [(bottom, f"{role}: no gradient", theme.error) for role in sorted(trainable - set(series))]
    labels += [(bottom, f"{role} [frozen]", theme.muted) for role in recording.frozen_roles]
    if isinstance(clip, int | float) and clip > 0:
        low, high = axes.get_ylim()
        if low < clip < high:
            axes.axhline(clip, color=theme.ink, linewidth=0.9, linestyle=(0, (1, 2)))
            _note(axes, clip, f"all together clipped to {clip:g}", theme.ink)
    _nonfinite(axes, total, theme)
    label_ends(axes, labels)


def _role_curves(axes: Axes, series: dict[str, Series], theme: Theme) -> list[tuple[float, str, str]]:
    labels = []
    bottom = axes.get_ylim()[0]
    for role, whole in series.items():
        colour = theme.roles[role]
        zero = whole.steps[whole.values == 0]
        zero = zero[:: max(len(zero) // MOST_SIGNS, 1)]
        if len(zero):
            across = axes.get_xaxis_transform()
            axes.plot(
                zero,
                np.full(len(zero), 0.03),
                transform=across,
                linestyle="",
                marker="v",
                markersize=5,
                markerfacecolor=theme.paper,
                markeredgecolor=colour,
            )
        positive = _positive(whole)
        if not len(positive):
            words = f"{role} exactly 0" if len(zero) else f"{role} not finite"
            labels.append((bottom, words, theme.error))
            continue
        steps, low, middle, high = summarise(positive)
        if len(steps) < len(positive):
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        else:
            axes.plot(steps, middle, color=colour, alpha=0.28, linewidth=0.8)
        curve = np.exp(smooth(np.log(middle)))
        dots = "o" if len(steps) < 30 else ""
        dashes = ROLE_DASHES[role]
        axes.plot(steps, curve, color=colour, linewidth=2.1, linestyle=dashes, marker=dots, markersize=3.5)
        labels.append((float(curve[-1]), f"{role} {_sig(curve[-1])}", colour))
    return labels


def ratio_panel(axes: Axes, recording: Recording, theme: Theme) -> None:
    """How far each part moves in a step."""
    dress(axes, theme, title="Update of a step, as a share of the weights", last=True)
    series = {role: found for role in recording.roles if len(found := recording.column(UPDATE_RATIO + role))}
    low, high = HEALTHY_RATIO
    band = Series(np.array([0, 0]), np.array([low / 3, high * 3]))
    _log_axis(axes, [band, *series.values()])
    axes.axhspan(low, high, color=theme.roles["language"], alpha=0.1, linewidth=0)
    across = axes.get_yaxis_transform()
    normal = f"normal: {low:.4f} to {high:.2f}"
    axes.text(
        0.994, high * 0.86, normal, transform=across, ha="right", va="top", fontsize=8.5, color=theme.muted
    )
    label_ends(axes, _role_curves(axes, series, theme))


def _heat_panels(
    figure: Figure,
    panels: Sequence[Axes],
    stacks: Sequence[tuple[str, list[tuple[int, Series]]]],
    last: int,
    theme: Theme,
) -> None:
    tables = [cells(layers, last) for _, layers in stacks]
    known = [table.norms[np.isfinite(table.norms) & (table.norms > 0)] for table in tables]
    values = np.concatenate(known) if known else np.empty(0)
    if not panels:
        return
    if not len(values):
        values = np.array([1e-3, 1.0])
    top = float(np.quantile(values, 0.995))
    bottom = max(float(np.quantile(values, 0.005)), top / 10**MOST_DECADES)
    # At least two decades, so that layers which are all alike also look alike.
    norm = LogNorm(min(bottom, top / 100), top, clip=True)
    for axes, (stack, layers), table in zip(panels, stacks, tables, strict=True):
        dress(axes, theme, title=f"Gradient norm by layer: {stack}", last=False)
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_facecolor(GREY[theme.name])
        image = painted(table, norm, theme)
        edges = np.arange(len(layers) + 1) - 0.5
        axes.pcolormesh(table.edges, edges, image, shading="flat", rasterized=True, zorder=1)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        every = -(-len(layers) // 10)
        rows = range(0, len(layers), every)
        axes.yaxis.set_major_locator(FixedLocator(list(rows)))
        axes.set_yticklabels([f"layer {layers[row][0]}" for row in rows])
    infinite = any(np.isinf(table.norms).any() for table in tables)
    zero = any((table.norms == 0).any() for table in tables)
    _colour_bar(figure, panels, norm, theme)
    odd = [(theme.error, "NaN or infinity")] * infinite + [(theme.ink, "exactly 0")] * zero
    for row, (colour, words) in enumerate(odd):
        y = panels[0].get_position().y1 - (0.08 + 0.2 * row) / figure.get_figheight()
        figure.text(RIGHT + 0.075, y, "■", color=colour, fontsize=9, va="center")
        figure.text(RIGHT + 0.09, y, words, color=theme.muted, fontsize=8.5, va="center")


def _colour_bar(figure: Figure, panels: Sequence[Axes], norm: LogNorm, theme: Theme) -> None:
    top, bottom = panels[0].get_position().y1, panels[-1].get_position().y0
    place = figure.add_axes((RIGHT + 0.014, bottom, 0.011, top - bottom))
    bar = figure.colorbar(ScalarMappable(norm, colours(theme)), cax=place)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=theme.muted, labelsize=8.5, length=0, which="both")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _log_axis(axes: Axes, series: Sequence[Series]) -> None:
    """A log axis that holds the positive values, and not more decades than can be read."""
    axes.set_yscale("log")
    known = [positive.values for s in series if len(positive := _positive(s))]
    values = np.concatenate(known) if known else np.array([1.0])
    top = float(values.max())
    bottom = max(float(values.min()), top / 10**MOST_DECADES)
    axes.set_ylim(bottom / 1.8, top * 1.8)
    # Where there are few powers of ten on the axis, threefold steps between them help.
    few = top / bottom < 300
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if few else (1.0,), numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _positive(series: Series) -> Series:
    keep = np.isfinite(series.values) & (series.values > 0)
    return Series(series.steps[keep], series.values[keep])


def _nonfinite(axes: Axes, series: Series, theme: Theme) -> None:
    steps = series.steps[~np.isfinite(series.values)]
    steps = steps[:: max(len(steps) // MOST_SIGNS, 1)]
    if len(steps):
        across = axes.get_xaxis_transform()
        up = np.full(len(steps), 0.985)
        axes.plot(steps, up, transform=across, linestyle="", marker="x", color=theme.error, markersize=5)


def _note(axes: Axes, y: float, words: str, colour: str) -> None:
    axes.annotate(
        words,
        (1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=colour,
    )


def _sig(value: float) -> str:
    return f"{value:.2g}"
