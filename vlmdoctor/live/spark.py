"""Numbers as people read them in a terminal, and series of them as rows of little bars."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Signs:
    """The characters that draw, for terminals with and without Unicode."""

    bars: str
    full: str
    head: str
    empty: str
    odd: str
    zero: str
    error: str


UNICODE = Signs("▁▂▃▄▅▆▇█", "━", "╸", "─", "×", "·", "✗")
ASCII = Signs("_.-~=+*#", "=", ">", "-", "x", "0", "x")


def signs_for(encoding: str) -> Signs:
    """The characters that this encoding of a stream can carry."""
    try:
        (UNICODE.bars + UNICODE.head + UNICODE.error).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def sparkline(values: Sequence[float], columns: int, signs: Signs = UNICODE, *, log: bool = False) -> str:
    """The values as a row of little bars, at most `columns` wide.

    On a log scale exact zeros have a sign of their own, as NaN and infinity have.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8)
    '▁▂▃▄▅▆▇█'
    """
    if columns < 1 or not values:
        return ""
    pooled = _pool(values, columns)
    scaled = [math.log(value) if 0 < value < math.inf else math.nan for value in pooled] if log else pooled
    finite = [value for value in scaled if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    # A range of nothing, or of rounding errors, is a flat line in the middle and not a mountain range.
    least = 0.2 if log else 0.02 * max(abs(low), abs(high), 1e-12)
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    top = len(signs.bars) - 1

    def bar(value: float, place: float) -> str:
        if math.isfinite(place):
            return signs.bars[round((place - low) / (high - low) * top)]
        return signs.zero if value == 0 else signs.odd

    return "".join(map(bar, pooled, scaled))


def _pool(values: Sequence[float], columns: int) -> list[float]:
    if len(values) <= columns:
        return list(values)
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def figure(value: float | None) -> str:
    """A loss or a norm in at most eight columns."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if value and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def small(value: float | None) -> str:
    """A ratio in scientific notation."""
    return "" if value is None else f"{value:.1e}" if math.isfinite(value) else "NaN"
