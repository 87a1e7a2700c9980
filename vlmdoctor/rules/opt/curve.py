"""Schedules for the rules' examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from vlmdoctor.evidence.schedule import Schedule

STEPS, BASE = 1000, 1e-4


def sample_schedule(rate: Callable[[float], float] | None = None, **fields: Any) -> Schedule:
    """A schedule of 1,000 steps; `rate` gives the share of the base rate at each share of the run.

    By default: a warm-up over the first 3%, then a cosine down to 0 at the last step.
    """

    def usual(done: float) -> float:
        return done / 0.03 if done < 0.03 else 0.5 * (1 + math.cos(math.pi * (done - 0.03) / 0.97))

    curve = tuple((step, BASE * (rate or usual)(step / STEPS)) for step in range(STEPS))
    usual_fields: dict[str, Any] = {"steps": STEPS, "curve": curve, "base": BASE, "scheduler": "LambdaLR"}
    return Schedule(**(usual_fields | fields))
