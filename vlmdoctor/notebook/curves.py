"""Curves as a small SVG of plain text: made in a millisecond, without matplotlib."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 20
# More points than this are drawn as means of stretches.
MOST_POINTS = 300
# Values further apart than this are drawn on a log axis.
LOG_RANGE = 60.0
MOST_DECADES = 8
MOST_MARKS = 30

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        name: The name of its colour in the style of the page.
        points: (step, value), in order of steps.
    """

    name: str
    points: Points


def svg(curves: Sequence[Curve], title: str, *, log: bool = False) -> str:
    """The curves on common axes; `log` asks for a log axis. Non-finite values are crosses at the top.

    Without any point it is an empty text.
    """
    steps = [step for curve in curves for step, _ in curve.points]
    if not steps:
        return ""
    finite = [value for curve in curves for _, value in curve.points if math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    log = bool(positive) and (log or (min(finite) > 0 and max(finite) > LOG_RANGE * min(finite)))
    axis = _log_axis(positive) if log else _axis(finite)
    first, last = min(steps), max(max(steps), min(steps) + 1)
    parts = [_grid(axis, first, max(steps))]
    for curve in curves:
        pooled = _pooled([(s, v) for s, v in curve.points if math.isfinite(v) and (v > 0 or not log)])
        places = [f"{_x(step, first, last):.1f},{axis.y(value):.1f}" for step, value in pooled]
        if len(places) == 1:
            x, _, y = places[0].partition(",")
            parts.append(f"<circle class='{curve.name}' cx='{x}' cy='{y}' r='2.5'/>")
        elif places:
            parts.append(f"<polyline class='{curve.name}' points='{' '.join(places)}'/>")
        parts += _marks(curve, first, last, zeros=log)
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(title)}'>{''.join(parts)}</svg>"
    )


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool

    def y(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        share = (value - low) / (high - low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)


def _axis(values: Sequence[float]) -> _Axis:
    """From 0, or from below it, to a round number."""
    high, low = max(values, default=1.0), min(min(values, default=0.0), 0.0)
    span = high - low
    if not 1e-300 < span < 1e300:
        return _Axis(0.0, 1.0, (0.0, 1.0), log=False)
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 4)
    ticks = [step * number for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
    return _Axis(ticks[0], ticks[-1], tuple(ticks), log=False)


def _log_axis(values: Sequence[float]) -> _Axis:
    """From a power of ten to another, of which at most four are labelled."""
    top = min(math.ceil(math.log10(max(values)) - 1e-9), 300)
    bottom = min(max(math.floor(math.log10(min(values)) + 1e-9), top - MOST_DECADES), top - 1)
    every = max((top - bottom + 3) // 4, 1)
    ticks = tuple(10.0**power for power in range(bottom, top + 1, every))
    return _Axis(10.0**bottom, 10.0**top, ticks, log=True)


def _grid(axis: _Axis, first: int, last: int) -> str:
    lines = []
    for tick in axis.ticks:
        y = axis.y(tick)
        lines.append(f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        lines.append(f"<text x='{LEFT - 6}' y='{y + 3.5:.1f}' text-anchor='end'>{tick:.3g}</text>")
    foot = HEIGHT - 5
    lines.append(f"<text x='{LEFT}' y='{foot}'>step {first:,}</text>")
    if last > first:
        lines.append(f"<text x='{WIDTH - RIGHT}' y='{foot}' text-anchor='end'>{last:,}</text>")
    return "".join(lines)


def _marks(curve: Curve, first: int, last: int, *, zeros: bool) -> list[str]:
    """A cross at the top for each value that is not finite; on a log axis a ring at the foot for zero."""
    odd = [step for step, value in curve.points if not math.isfinite(value)]
    none = [step for step, value in curve.points if value == 0] if zeros else []
    marks = [
        f"<text class='odd' x='{_x(step, first, last):.1f}' y='{TOP + 9}' text-anchor='middle'>×</text>"
        for step in odd[:: max(len(odd) // MOST_MARKS, 1)]
    ]
    foot = HEIGHT - BOTTOM - 3
    marks += [
        f"<circle class='{curve.name} ring' cx='{_x(step, first, last):.1f}' cy='{foot}' r='2.5'/>"
        for step in none[:: max(len(none) // MOST_MARKS, 1)]
    ]
    return marks


def _x(step: float, first: int, last: int) -> float:
    return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)


def _pooled(points: Points) -> list[tuple[float, float]]:
    if len(points) <= MOST_POINTS:
        return [(float(step), value) for step, value in points]
    edges = [round(number * len(points) / MOST_POINTS) for number in range(MOST_POINTS + 1)]
    pooled = []
    for start, stop in itertools.pairwise(edges):
        piece = points[start:stop]
        count = len(piece)
        pooled.append((sum(step for step, _ in piece) / count, sum(value / count for _, value in piece)))
    return pooled
