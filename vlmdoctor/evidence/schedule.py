"""The learning rate over the whole run, simulated on a copy of the scheduler without the model's weights."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.optimizer.schedule"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of the parameter group that has the largest one.

    Attributes:
        steps: Optimizer steps of the run.
        curve: (step, rate) at some of the steps, the first and the last among them.
        base: The rate that the schedule scales.
        scheduler: The scheduler's class.
        per_step: How often the scheduler is stepped in one optimizer step.
        raises: What the scheduler raises when it is stepped on after the curve's last step; None where it
            does not.
        restarts: Whether it is of a kind that goes up and down by design.
        resumed: Whether steps were taken before.
    """

    steps: int
    curve: tuple[tuple[int, float], ...]
    base: float
    scheduler: str
    per_step: int = 1
    raises: str | None = None
    restarts: bool = False
    resumed: bool = False
