"""Both corpora in one list."""

from __future__ import annotations

import functools

from benchmarks.detection import faults, healthy
from benchmarks.detection.case import Case


@functools.cache
def by_name() -> dict[str, Case]:
    """Every case by its name, the healthy first."""
    return {case.name: case for case in (*healthy.cases(), *faults.cases())}
