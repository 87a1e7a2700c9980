"""Layers by steps as a table of cells, and its colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgba

from vlmdoctor.runs.columns import Series
from vlmdoctor.runs.plots.style import Theme

MOST_COLUMNS = 240
# Weak gradients fade into the paper, strong ones are dark on light paper and bright on dark paper; lightness
# alone carries the order, so that it survives colour blindness and a black-and-white printer.
_STOPS = {
    "light": ("#f3f6fa", "#c3dcee", "#7fb8dc", "#3a8cc4", "#12609c", "#083a66"),
    "dark": ("#1a222b", "#17405f", "#1f6899", "#3f94c9", "#84c2e8", "#dcf0fc"),
}
GREY = {"light": "#ffffff", "dark": "#14181d"}


@dataclass(frozen=True)
class Cells:
    """A table of gradient norms.

    Attributes:
        edges: Steps between which each column lies, float [C + 1].
        norms: [L, C]; NaN where nothing was sampled, 0 where the gradient was exactly zero, infinity where
            it was not finite.
    """

    edges: np.ndarray
    norms: np.ndarray


def cells(layers: Sequence[tuple[int, Series]], last: int) -> Cells:
    """Bins the sampled steps; a bin shows its median, or infinity where anything in it was not finite."""
    steps = np.unique(np.concatenate([series.steps for _, series in layers]))
    columns = min(len(steps), MOST_COLUMNS)
    if len(steps) <= MOST_COLUMNS:
        middles = (steps[1:] + steps[:-1]) / 2
        edges = np.concatenate(([float(steps[0])], middles, [max(float(last), steps[-1] + 1.0)]))
    else:
        edges = np.linspace(float(steps[0]), float(max(last, steps[-1])) + 1e-6, columns + 1)
    norms = np.full((len(layers), columns), np.nan)
    for row, (_, series) in enumerate(layers):
        bins = np.clip(np.searchsorted(edges, series.steps, side="right") - 1, 0, columns - 1)
        cuts = np.searchsorted(bins, np.arange(columns + 1))
        for column in range(columns):
            values = series.values[cuts[column] : cuts[column + 1]]
            if len(values):
                norms[row, column] = np.median(values) if np.isfinite(values).all() else np.inf
    return Cells(edges, norms)


def colours(theme: Theme) -> LinearSegmentedColormap:
    """The scale from weak to strong."""
    return LinearSegmentedColormap.from_list(f"gradient-{theme.name}", _STOPS[theme.name])


def painted(table: Cells, norm: LogNorm, theme: Theme) -> np.ndarray:
    """The cells' colours, RGBA [L, C, 4]; clear where nothing was sampled."""
    norms = table.norms
    assert norm.vmin is not None  # a scale of logarithms has its ends
    ordinary = np.isfinite(norms) & (norms > 0)
    image = colours(theme)(norm(np.where(ordinary, norms, norm.vmin)))
    image[norms == 0] = to_rgba(theme.ink)
    image[np.isinf(norms)] = to_rgba(theme.error)
    image[np.isnan(norms)] = (0, 0, 0, 0)
    return image
