"""lr-ends-early: the learning rate is zero, or negative, long before the run ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from vlmdoctor.evidence.schedule import Schedule
from vlmdoctor.evidence.training_args import TrainingArgs
from vlmdoctor.finding import Finding, Fix, Inferred, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.opt.curve import sample_schedule

NOTHING = 1e-6  # of the base rate
LARGE_SHARE = 0.05  # of the run without learning


@rule("lr-ends-early", "OPT301", explains=("weights-not-moving", "loss-not-falling"))
def lr_ends_early(schedule: Schedule, arguments: TrainingArgs | None) -> Iterator[Finding]:
    """Learning rate is zero or negative well before the last step.

    ## Why it matters
    The rest of the run costs compute and learns nothing. The schedule was made for fewer steps than are
    taken, or the scheduler is stepped once for each process or micro-batch ([transformers
    24088](https://github.com/huggingface/transformers/issues/24088), [accelerate
    2318](https://github.com/huggingface/accelerate/issues/2318), [accelerate
    2926](https://github.com/huggingface/accelerate/issues/2926)). A rate below 0 increases the loss.

    ## Confidence and false positives
    A copy of the scheduler is stepped through the number of steps that the training arguments give, once per
    optimizer step (once per process too, if accelerate prepared it). It is an error where at least 5% of the
    run learn nothing. That the scheduler is stepped so is assumed; a loop that steps it more often makes it
    worse.

    ## What to do
    Make the schedule for the number of optimizer steps: batches x epochs / accumulation / processes.
    """
    if schedule.raises is not None:
        yield _raises(schedule)
        return
    nothing = NOTHING * abs(schedule.base)
    negative = [step for step, rate in schedule.curve if rate < -nothing]
    alive = [step for step, rate in schedule.curve if rate > nothing]
    end = negative[0] if negative else (alive[-1] + 1 if alive else 0)
    idle = 1 - end / schedule.steps
    if not negative and (idle < LARGE_SHARE or schedule.steps - end < 2):
        return
    if negative:
        message = f"the learning rate is negative from step {end:,} of {schedule.steps:,}"
    elif not alive:
        message = f"the learning rate is 0 at all {schedule.steps:,} steps"
    else:
        message = f"the learning rate is 0 from step {end:,} of {schedule.steps:,}: {idle:.0%} of the run"
    yield Finding(
        message,
        Severity.ERROR,
        at=(schedule.scheduler,),
        measured={"zero_from_step": end, "share_of_the_run": round(idle, 4)},
        threshold={"share_of_the_run": LARGE_SHARE},
        cause=_cause(schedule, arguments, end),
        fix=Fix(
            "make the schedule for the number of optimizer steps",
            (f"scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, {schedule.steps})",),
        ),
    )


def _raises(schedule: Schedule) -> Finding:
    end = schedule.curve[-1][0]
    return Finding(
        f"the scheduler raises at step {end:,} of {schedule.steps:,}",
        Severity.ERROR,
        at=(schedule.scheduler,),
        measured={"raises_at": end, "raised": schedule.raises},
        threshold={"steps": schedule.steps},
        cause=f"it was made for fewer steps than the run takes, and raises after them ({schedule.raises})",
        fix=Fix("make the schedule for the number of optimizer steps", (f"total_steps={schedule.steps}",)),
    )


def _cause(schedule: Schedule, arguments: TrainingArgs | None, end: int) -> str:
    if schedule.per_step > 1:
        return (
            f"accelerate steps it {schedule.per_step} times in one optimizer step, once per process, and "
            "it was made for the number of optimizer steps"
        )
    if not end or schedule.base == 0:
        return Inferred(
            "the schedule, or the rate that it scales, is 0; which of the two was not established"
        )
    ratio = schedule.steps / end
    known = (
        {"processes": arguments.world_size, "accumulated batches": arguments.accumulation}
        if arguments
        else {}
    )
    for what, count in known.items():
        if count > 1 and math.isclose(ratio, count, rel_tol=0.05):
            return f"it was made for 1/{count} of the steps: as many times fewer as there are {what}"
    return f"it was made for about {end:,} steps, and the run takes {schedule.steps:,}"


@lr_ends_early.bad
def made_for_one_process_of_four() -> tuple[Schedule, TrainingArgs]:
    return sample_schedule(lambda done: max(0.0, 1 - 4 * done)), TrainingArgs(steps=1000, world_size=4)


@lr_ends_early.bad
def below_zero() -> tuple[Schedule, TrainingArgs]:
    return sample_schedule(lambda done: 1 - 2 * done), TrainingArgs(steps=1000)


@lr_ends_early.bad
def one_cycle_of_half_the_run() -> tuple[Schedule, TrainingArgs]:
    usual = sample_schedule()
    cut = dataclasses.replace(usual, curve=usual.curve[:501], raises="ValueError: Tried to step 501 times")
    return cut, TrainingArgs(steps=1000)


@lr_ends_early.good
def cosine_with_warm_up() -> tuple[Schedule, TrainingArgs]:
    return sample_schedule(), TrainingArgs(steps=1000)


@lr_ends_early.good
def restarts() -> tuple[Schedule, TrainingArgs]:
    """Down to 0 four times, and up again."""
    return sample_schedule(lambda done: 1 - 4 * done % 1, restarts=True), TrainingArgs(steps=1000)
