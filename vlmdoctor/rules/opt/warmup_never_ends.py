"""warmup-never-ends: the run ends before the warm-up."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.schedule import Schedule
from vlmdoctor.evidence.training_args import TrainingArgs
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.opt.curve import sample_schedule

REACHED = 0.9  # of the base rate


@rule("warmup-never-ends", "OPT303")
def warmup_never_ends(schedule: Schedule | None, arguments: TrainingArgs | None) -> Iterator[Finding]:
    """Warm-up longer than the run.

    ## Why it matters
    The chosen rate is never reached, and the decay never begins: the warm-up was counted in micro-batches or
    for another run's length, as when accumulation divides the number of optimizer steps ([transformers
    24088](https://github.com/huggingface/transformers/issues/24088)).

    ## Confidence and false positives
    Measured on a copy of the scheduler over the run's steps: the rate rises up to the last step and stays
    under 90% of the base rate. Where there is no scheduler yet, the numbers of the training arguments were
    compared. It is a warning, since a short trial may stop a long run early.

    ## What to do
    Count the warm-up in optimizer steps, or as a ratio of them.
    """
    if schedule is None:
        yield from _by_the_arguments(arguments)
        return
    rates = [rate for _, rate in schedule.curve]
    rising = all(b >= a for a, b in pairwise(rates)) and rates[-1] > rates[0]
    # At a constant rate of growth the last steps would still grow.
    growing_at_the_end = len(rates) > 2 and rates[-1] > rates[-2]
    if schedule.restarts or not rising or not growing_at_the_end or rates[-1] >= REACHED * schedule.base:
        return
    yield Finding(
        f"the warm-up is longer than the run: after {schedule.steps:,} steps the learning rate is "
        f"{rates[-1]:.2g} of {schedule.base:.2g}",
        Severity.WARNING,
        at=(schedule.scheduler,),
        measured={"last": rates[-1], "steps": schedule.steps},
        threshold={"last": REACHED * schedule.base},
        cause="the rate rises up to the last step; the warm-up was counted for more steps than are taken",
        fix=Fix(
            "count the warm-up in optimizer steps of this run",
            (f"warmup_steps = {max(1, schedule.steps * 3 // 100)}",),
        ),
    )


def _by_the_arguments(arguments: TrainingArgs | None) -> Iterator[Finding]:
    if arguments is None or arguments.steps is None or arguments.warmup is None:
        raise Unavailable("neither a scheduler nor the lengths of run and warm-up were given")
    if arguments.warmup < arguments.steps:
        return
    yield Finding(
        f"the warm-up of {arguments.warmup:,} steps is longer than the run of {arguments.steps:,}",
        Severity.WARNING,
        at=("training_args.warmup_steps",),
        measured={"warmup_steps": arguments.warmup, "steps": arguments.steps},
        threshold={"warmup_steps": arguments.steps},
        cause="the chosen learning rate is never reached, and the decay never begins",
        fix=Fix(
            "count the warm-up in optimizer steps of this run",
            (f"warmup_steps = {max(1, arguments.steps * 3 // 100)}",),
        ),
    )


@warmup_never_ends.bad
def four_times_too_long() -> Schedule:
    return sample_schedule(lambda done: done / 4)


@warmup_never_ends.bad
def arguments_of_another_run() -> TrainingArgs:
    return TrainingArgs(steps=100, warmup=500)


@warmup_never_ends.good
def to_the_end_and_there() -> Schedule:
    return sample_schedule(lambda done: min(1.0, done / 0.5))
