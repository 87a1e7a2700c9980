"""lr-rises-again: after its end the schedule rises again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from vlmdoctor.evidence.schedule import Schedule
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.opt.curve import sample_schedule

LOW, HIGH = 0.02, 0.25  # of the peak
AS_STEEP = 1.5  # times the steepness of the decay
JUMP = 0.1  # of the peak in one step: a restart, and not the way back, unless it fell as steeply


@rule("lr-rises-again", "OPT302")
def lr_rises_again(schedule: Schedule) -> Iterator[Finding]:
    """Learning rate rises again after the end of its cosine.

    ## Why it matters
    A cosine schedule continues as a cosine after its last step. Made for too few steps, or stepped too often,
    it raises the rate again when the run should end, and undoes the decay ([transformers
    24088](https://github.com/huggingface/transformers/issues/24088), [EasyContext
    21](https://github.com/jzhang38/EasyContext/issues/21)).

    ## Confidence and false positives
    Measured on a copy of the scheduler over the run's steps: the rate falls below 2% of its peak and later
    rises above 25% as gradually as it fell, as a cosine does. Schedules that restart by design and rises in
    one jump are not reported. It is a warning, since a cycle may be intended.

    ## What to do
    Make the schedule for the number of optimizer steps of the run.
    """
    peak = max(rate for _, rate in schedule.curve)
    if schedule.restarts or peak <= 0:
        return
    first_peak = next(i for i, (_, rate) in enumerate(schedule.curve) if rate >= 0.9 * peak)
    after = schedule.curve[first_peak:]
    lowest = next((i for i, (_, rate) in enumerate(after) if rate < LOW * peak), None)
    if lowest is None:
        return
    rest = after[lowest:]
    steepest = _steepest(rest, 1)
    fell = _steepest(after[: lowest + 1], -1)
    top_step, top = max(rest, key=lambda point: point[1])
    if top < HIGH * peak or steepest > max(JUMP * peak, AS_STEEP * fell):
        return
    end, _ = min(rest[: rest.index((top_step, top)) + 1], key=lambda point: point[1])
    yield Finding(
        f"the learning rate rises again: to {top:.2g} at step {top_step:,}, after its end at step {end:,}",
        Severity.WARNING,
        at=(schedule.scheduler,),
        measured={"lowest_at": end, "rises_to": top, "peak": peak},
        threshold={"rises_to": HIGH * peak},
        cause=f"the schedule ends at about step {end:,} and the run takes {schedule.steps:,}; assumed, not "
        "known: that no cycle is intended",
        fix=Fix(
            "make the schedule for all steps of the run",
            (f"torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max={schedule.steps})",),
        ),
    )


def _steepest(curve: Sequence[tuple[int, float]], sign: int) -> float:
    """The steepest rise (or, with -1, fall) from one step to the next."""
    return max((sign * (b[1] - a[1]) / max(1, b[0] - a[0]) for a, b in pairwise(curve)), default=0.0)


@lr_rises_again.bad
def half_the_steps() -> Schedule:
    return sample_schedule(
        lambda done: 0.5 * (1 + math.cos(2 * math.pi * done)), scheduler="CosineAnnealingLR"
    )


@lr_rises_again.bad
def made_for_epochs() -> Schedule:
    """Three epochs, and a step of the schedule at each batch."""
    return sample_schedule(lambda done: 0.5 * (1 + math.cos(math.pi * done * 1000 / 3)))


@lr_rises_again.good
def hard_restarts() -> Schedule:
    return sample_schedule(lambda done: 1 - 3 * done % 1)
