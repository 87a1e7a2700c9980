"""Faults, planted by their mechanism into models of several families."""

from __future__ import annotations

from benchmarks.detection.case import Case
from benchmarks.detection.faults import (
    attention,
    batches,
    gradients,
    handwritten,
    landing,
    losses,
    optimizers,
    schedules,
    weights,
    wiring,
)
from benchmarks.detection.faults.plant import FAULTS

AREAS = (attention, batches, gradients, handwritten, landing, losses, optimizers, schedules, weights, wiring)


def cases() -> list[Case]:
    """Every fault in every family that it is planted in, by its name."""
    return [case for fault in sorted(FAULTS, key=lambda fault: fault.name) for case in fault.cases()]
