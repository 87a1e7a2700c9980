"""`loss.png`: the loss, the accuracy with the images and with shuffled ones, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from vlmdoctor.runs.columns import Recording, Series
from vlmdoctor.runs.plots.marks import Mark, flags, key_inches
from vlmdoctor.runs.plots.style import (
    AXIS_INCHES,
    GAP_INCHES,
    LIGHT,
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

# Beyond this range a linear axis shows one spike and a flat line.
LOG_RANGE = 60.0


def draw_loss(
    recording: Recording, path: Path, *, headline: str, marks: Sequence[Mark] = (), theme: Theme = LIGHT
) -> None:
    """Draws the loss of a run.

    Args:
        recording: The run.
        path: The picture; its suffix (.png or .svg) says which kind.
        headline: What the picture shows, in words.
        marks: Findings, flagged at their first step.
        theme: Light or dark paper.
    """
    accuracy = recording.evaluation("accuracy")
    heights = [3.1, 1.75, 0.5] if len(accuracy) else [4.3, 0.5]
    foot = AXIS_INCHES + key_inches(marks)
    figure = new_figure(TOP_INCHES + sum(heights) + GAP_INCHES * (len(heights) - 1) + foot, theme)
    panels = stack_panels(figure, heights, theme, foot=foot)
    last = recording.last_step or 0
    panels[0].set_xlim(-0.01 * max(last, 1), max(last, 1))
    loss_panel(panels[0], recording, theme)
    if len(accuracy):
        accuracy_panel(panels[1], recording, theme)
    lr_panel(panels[-1], recording, theme)
    heading(figure, theme, headline, subtitle(recording))
    flags(figure, panels, marks, theme)
    save(figure, path)


def loss_panel(axes: Axes, recording: Recording, theme: Theme) -> None:
    """The training loss, and the test losses with the right images and without."""
    dress(axes, theme, title="Loss", last=False)
    labels: list[tuple[float, str, str]] = []
    everything = recording.column("loss")
    loss = everything.finite
    if len(loss):
        steps, low, middle, high = summarise(loss)
        smoothed = smooth(middle)
        _scale(axes, loss, recording.info.get("vocab_size"))
        if len(steps) < len(loss):
            axes.fill_between(steps, low, high, color=theme.blue, alpha=0.22, linewidth=0)
        else:
            dots = "o" if len(steps) < 60 else ""
            axes.plot(steps, middle, color=theme.blue, alpha=0.3, linewidth=0.9, marker=dots, markersize=3)
        axes.plot(steps, smoothed, color=theme.blue, linewidth=2.2, solid_capstyle="round")
        labels.append((float(smoothed[-1]), f"training {_short(smoothed[-1])}", theme.blue))
    labels += _test_losses(axes, recording, theme)
    _guessing_line(axes, recording.info.get("vocab_size"), theme)
    _nonfinite(axes, everything, theme)
    label_ends(axes, labels)


def _scale(axes: Axes, loss: Series, vocab_size: int | None) -> None:
    """Linear from 0, unless that would hide everything but a spike."""
    guess = math.log(vocab_size) if vocab_size and vocab_size > 1 else 0.0
    typical = float(np.quantile(loss.values, 0.999)) if len(loss) > 200 else float(loss.values.max())
    top = max(typical, guess) * 1.08
    if loss.values.max() > LOG_RANGE and loss.values.min() > 0:
        axes.set_yscale("log")
        axes.set_ylim(max(loss.values.min() * 0.8, 1e-6), loss.values.max() * 1.3)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    else:
        axes.set_ylim(0, top or 1.0)


def _test_losses(axes: Axes, recording: Recording, theme: Theme) -> list[tuple[float, str, str]]:
    labels = []
    kinds = (
        ("loss", "test", theme.ink, "o"),
        ("loss_shuffled", "test, shuffled images", theme.muted, "s"),
        ("loss_blank", "test, blank images", theme.muted, "D"),
    )
    bottom, top = axes.get_ylim()
    for name, words, colour, marker in kinds:
        series = recording.evaluation(name).finite
        if not len(series):
            continue
        face = colour if name == "loss" else theme.paper
        axes.plot(
            series.steps,
            series.values,
            color=colour,
            linewidth=1.0,
            linestyle="-" if name == "loss" else (0, (3, 2)),
            marker=marker,
            markersize=4.5,
            markerfacecolor=face,
            markeredgecolor=colour,
            clip_on=False,
            zorder=3,
        )
        top = max(top, float(series.values.max()) * 1.08)
        bottom = min(bottom, float(series.values.min()) * 0.8)
        labels.append((float(series.values[-1]), f"{words} {_short(series.values[-1])}", colour))
    axes.set_ylim(bottom, top)
    return labels


def _guessing_line(axes: Axes, vocab_size: int | None, theme: Theme) -> None:
    if not vocab_size or vocab_size < 2:
        return
    guess = math.log(vocab_size)
    low, high = axes.get_ylim()
    if not low < guess <= high:
        return
    axes.axhline(guess, color=theme.muted, linewidth=1.0, linestyle=(0, (1, 2)))
    axes.annotate(
        f"ln {vocab_size:,} = {guess:.2f}: every token equally likely",
        (1.0, guess),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=theme.muted,
    )


def _nonfinite(axes: Axes, series: Series, theme: Theme) -> None:
    steps = series.steps[~np.isfinite(series.values)]
    if not len(steps):
        return
    at = ("data", "axes fraction")
    axes.plot(
        steps[:: max(len(steps) // 40, 1)],
        np.full(len(steps), 0.985)[:: max(len(steps) // 40, 1)],
        linestyle="",
        marker="x",
        color=theme.error,
        markersize=5,
        transform=axes.get_xaxis_transform(),
    )
    many = "1 step" if len(steps) == 1 else f"{len(steps):,} steps"
    side = "right" if steps[0] > 0.6 * axes.get_xlim()[1] else "left"
    axes.annotate(
        f"NaN or infinity in {many}, first at {steps[0]:,}",
        (float(steps[0]), 0.93),
        xycoords=at,
        xytext=(-6 if side == "right" else 6, 0),
        textcoords="offset points",
        ha=side,
        va="top",
        fontsize=9,
        color=theme.error,
    )


def accuracy_panel(axes: Axes, recording: Recording, theme: Theme) -> None:
    """The accuracy with the images and with shuffled ones."""
    dress(axes, theme, title="Accuracy on unseen test images (answers exactly right)", last=False)
    accuracy = recording.evaluation("accuracy").finite
    shuffled = recording.evaluation("accuracy_shuffled").finite
    labels = []
    if len(shuffled) and len(shuffled) == len(accuracy):
        axes.fill_between(
            accuracy.steps, shuffled.values, accuracy.values, color=theme.blue, alpha=0.12, linewidth=0
        )
    for series, words, colour, dashes, face in (
        (accuracy, "accuracy", theme.blue, "-", theme.blue),
        (shuffled, "shuffled images", theme.muted, (0, (3, 2)), theme.paper),
    ):
        if not len(series):
            continue
        axes.plot(
            series.steps,
            series.values,
            color=colour,
            linewidth=2.0,
            linestyle=dashes,
            marker="o",
            markersize=5,
            markerfacecolor=face,
            markeredgecolor=colour,
            clip_on=False,
            zorder=3,
        )
        labels.append((float(series.values[-1]), f"{words} {100 * series.values[-1]:.0f}%", colour))
    gate = recording.info.get("required_accuracy")
    if isinstance(gate, int | float):
        axes.axhline(gate, color=theme.ink, linewidth=0.9, linestyle=(0, (1, 2)))
        across = axes.get_yaxis_transform()
        asked = f"required {100 * gate:.0f}%"
        axes.text(0.004, gate + 0.03, asked, transform=across, fontsize=8.5, color=theme.ink)
    axes.set_ylim(0, 1)
    axes.set_yticks((0, 0.25, 0.5, 0.75, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol="%"))
    label_ends(axes, labels)


def lr_panel(axes: Axes, recording: Recording, theme: Theme) -> None:
    """The learning rate."""
    dress(axes, theme, title="Learning rate", last=True)
    axes.grid(visible=False)
    lr = recording.column("lr").finite
    axes.set_yticks(())
    if not len(lr):
        return
    steps, _, middle, _ = summarise(lr)
    axes.fill_between(steps, 0, middle, color=theme.muted, alpha=0.3, linewidth=0)
    top = float(middle.max())
    axes.set_ylim(0, top * 1.05 or 1.0)
    label_ends(axes, [(top, f"peak {top:.2g}", theme.muted)])


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"
