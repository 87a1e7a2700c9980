"""Numbers as texts: shares, counts and times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def count(number: int) -> str:
    """A number of parameters: 512, 8.3k, 26.2M, 1.3B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if scaled < 100 else f"{scaled:.0f}{unit}"
    return str(number)


def clock(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(share: float) -> str:
    """A share in per cent, without pretending to more digits than the eye wants."""
    text = f"{100 * share:.1f}"
    return f"{text.removesuffix('.0')}%"


def number(summary: Mapping[str, Any], name: str) -> float | None:
    """A finite number of the summary, else None."""
    value = summary.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
