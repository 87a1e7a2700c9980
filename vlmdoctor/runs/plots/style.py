"""The look that the plots share: colours that the colour-blind can tell apart, direct labels, quiet axes."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vlmdoctor.knowledge.parameter_names import ROLES
from vlmdoctor.runs.columns import Recording, Series

WIDTH_INCHES = 11.0
# Room for direct labels to the right of the curves, and for the names of layers on the left.
EDGE, LEFT, RIGHT = 0.03, 0.078, 0.80
# Headline, subtitle, and the flags and title of the first panel.
TOP_INCHES = 1.3
AXIS_INCHES = 0.55
GAP_INCHES = 0.42
# More points than the picture has columns say nothing: they are drawn as bands of quantiles.
MOST_POINTS = 1200


@dataclass(frozen=True)
class Theme:
    """Colours on light or dark paper; role colours are those of Okabe and Ito, darkened or lightened."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    blue: str
    error: str
    warning: str
    roles: Mapping[str, str]


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2127",
    muted="#6b7480",
    grid="#e6e9ed",
    blue="#0067b1",
    error="#c2310a",
    warning="#b07800",
    roles=dict(zip(ROLES, ("#0067b1", "#d55e00", "#00856a", "#a8428c", "#6b7480"), strict=True)),
)
DARK = Theme(
    name="dark",
    paper="#14181d",
    ink="#e8ebee",
    muted="#98a2ad",
    grid="#2a3038",
    blue="#5cb3f0",
    error="#ff7a52",
    warning="#f0b93a",
    roles=dict(zip(ROLES, ("#5cb3f0", "#f28c38", "#2fc09b", "#e08cc8", "#98a2ad"), strict=True)),
)
ROLE_DASHES = dict(zip(ROLES, ("-", (0, (5, 1.5)), "-", (0, (1.5, 1.2)), "-"), strict=True))


class ShownFigure(Figure):
    """A figure that a notebook shows, whether pyplot is in use or not."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture in twice the resolution that it is shown in."""
        data = io.BytesIO()
        with _quietly():
            self.savefig(data, format="png", dpi=160)
        width, height = (round(inches * 80) for inches in self.get_size_inches())
        return data.getvalue(), {"width": width, "height": height}


def new_figure(height_inches: float, theme: Theme) -> Figure:
    """An empty figure of the common width; no global state of pyplot is touched."""
    return ShownFigure(figsize=(WIDTH_INCHES, height_inches), facecolor=theme.paper)


def stack_panels(figure: Figure, heights: Sequence[float], theme: Theme, *, foot: float) -> list[Axes]:
    """Axes one above the other with one common x axis; `heights` and `foot` (room below them) in inches."""
    whole = figure.get_figheight()
    gap = (whole - TOP_INCHES - foot - sum(heights)) / max(len(heights) - 1, 1)
    panels: list[Axes] = []
    top = whole - TOP_INCHES
    for height in heights:
        place = (LEFT, (top - height) / whole, RIGHT - LEFT, height / whole)
        panels.append(figure.add_axes(place, sharex=panels[0] if panels else None))
        top -= height + gap
    return panels


def save(figure: Figure, path: Path) -> None:
    """Writes the figure whole or not at all; the same data gives the same bytes."""
    kind = path.suffix.removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    temporary = path.with_name(f".{path.name}.part")
    with _quietly():
        try:
            figure.savefig(temporary, format=kind, dpi=144, metadata=metadata)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Scoped: the hash salt makes the names inside an SVG repeatable; a name in a script that the font lacks
    is drawn as boxes, which is not worth a line in the user's terminal."""
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "vlmdoctor"}):
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        yield


def dress(axes: Axes, theme: Theme, *, title: str, last: bool) -> None:
    """Gives axes the common look; only the `last` of a column of axes names the steps."""
    axes.set_facecolor(theme.paper)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.muted if last else theme.grid)
    axes.tick_params(colors=theme.muted, labelsize=9, length=0, pad=5, which="both")
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    edge = (EDGE - LEFT) / (RIGHT - LEFT)
    axes.set_title(title, loc="left", x=edge, fontsize=10, color=theme.ink, pad=7, fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(labelbottom=last)
    if last:
        axes.set_xlabel("optimizer step", fontsize=9, color=theme.muted, labelpad=4)


def heading(figure: Figure, theme: Theme, headline: str, subtitle: str) -> None:
    """What the picture says, and what it is about."""
    height = figure.get_figheight()
    headline = textwrap.shorten(headline, 130, placeholder=" …")
    size = min(14.5, 14.5 * 84 / max(len(headline), 1))
    figure.text(EDGE, 1 - 0.42 / height, headline, fontsize=size, fontweight="bold", color=theme.ink)
    figure.text(EDGE, 1 - 0.68 / height, subtitle, fontsize=9.5, color=theme.muted)


def subtitle(recording: Recording) -> str:
    """`minivlm:tiny on digits, 2,000 of 2,000 steps`."""
    named = str(recording.info.get("target") or recording.folder.name)
    data = recording.config.get("data")
    parts = [f"{named} on {Path(str(data)).name}" if data else named]
    last, total = recording.last_step, recording.total_steps
    if last is not None:
        done = last + 1
        parts.append(
            f"{done:,} of {total:,} steps" if total and total > done else f"{done:,} step{'s' * (done != 1)}"
        )
    return ", ".join(parts)


def summarise(series: Series, bins: int = MOST_POINTS) -> tuple[np.ndarray, ...]:
    """(steps, low, middle, high) of at most `bins` stretches: their 5 %, 50 % and 95 % quantiles.

    The series has to be finite. A short series comes back as it is.
    """
    steps, values = series.steps, series.values
    if len(steps) <= bins:
        return steps.astype(float), values, values, values
    pieces = np.array_split(np.arange(len(steps)), bins)
    quantiles = np.array([np.quantile(values[piece], (0.05, 0.5, 0.95)) for piece in pieces])
    centres = np.array([steps[piece].mean() for piece in pieces])
    return centres, quantiles[:, 0], quantiles[:, 1], quantiles[:, 2]


def smooth(values: np.ndarray) -> np.ndarray:
    """A moving mean of moving medians, so that spikes do not drag it along, over a fortieth of the series.

    The window grows from nothing at the start, where a loss falls fastest, and is cut short at the end.
    """
    width = max(len(values) // 40, 1) | 1
    if width < 3:
        return values
    padded = np.pad(values, width // 2, mode="edge")
    medians = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    place = np.arange(len(values))
    half = np.minimum(width // 2, place)
    medians = np.where(place < width // 2, values, medians)
    sums = np.concatenate(([0.0], np.cumsum(medians)))
    start, stop = place - half, np.minimum(place + half + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def label_ends(axes: Axes, labels: Iterable[tuple[float, str, str]], *, x: float = 1.012) -> None:
    """Writes (value, text, colour) beside the right end of the curves, moved apart where they would overlap.

    Call it when the limits of the axes are final.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    height = axes.get_position().height * figure.get_figheight() * 72
    gap = 13.5 / height
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        (float(np.clip(to_axes.transform((0, value))[1], 0.0, 1.0)), text, colour)
        for value, text, colour in labels
    )
    heights = np.array([place for place, _, _ in placed])
    for _ in range(60):
        overlap = gap - np.diff(heights)
        if not len(overlap) or overlap.max() <= 1e-4:
            break
        push = np.maximum(overlap, 0) / 2
        heights[:-1] -= push
        heights[1:] += push
        heights += max(0.0, 0.02 - heights.min()) - max(0.0, heights.max() - 1.0)
    for (_, text, colour), y in zip(placed, heights, strict=True):
        axes.text(x, y, text, transform=axes.transAxes, color=colour, fontsize=9, va="center", clip_on=False)
