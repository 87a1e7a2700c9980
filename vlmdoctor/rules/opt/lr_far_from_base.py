"""lr-far-from-base: the schedule takes the learning rate far away from the chosen one."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.schedule import Schedule
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.opt.curve import BASE, sample_schedule

MOST, LEAST = 1000.0, 0.01  # times the base rate
CHOOSES = ("OneCycleLR", "CyclicLR")  # their highest rate is their own argument


@rule("lr-far-from-base", "OPT306")
def lr_far_from_base(schedule: Schedule) -> Iterator[Finding]:
    """Learning rate far above or far below the chosen one, by its schedule.

    ## Why it matters
    A decay factor above 1 makes the rate grow without bound; a function given to `LambdaLR` that returns the
    rate itself, and not a factor of it, multiplies the rate with itself: 1e-4 becomes 1e-8, and no weight
    changes. Neither raises.

    ## Confidence and false positives
    Measured on a copy of the scheduler over the run's steps. Reported where the highest rate of the whole run
    is more than a thousand times the chosen one, or less than a hundredth of it and not rising (a warm-up
    that is too long has a rule of its own). A run that continues from a checkpoint is not judged, nor are
    schedules whose highest rate is their own argument.

    ## What to do
    Return a factor from the function; take a factor below 1 for decay.
    """
    if schedule.restarts or schedule.resumed or schedule.scheduler in CHOOSES or schedule.base <= 0:
        return
    rates = [rate for _, rate in schedule.curve]
    highest = max(rates)
    if highest <= MOST * schedule.base and (
        highest >= LEAST * schedule.base or rates[-1] >= highest > rates[0]
    ):
        return
    if highest <= 0:
        return  # zero from the start has a rule of its own
    up = highest > schedule.base
    yield Finding(
        f"the learning rate rises to {highest:.2g}, from a base rate of {schedule.base:.2g}"
        if up
        else f"the learning rate is {highest:.2g} at its highest, and {schedule.base:.2g} was chosen",
        Severity.ERROR if up else Severity.WARNING,
        at=(schedule.scheduler,),
        measured={"highest": highest, "base": schedule.base, "steps": schedule.steps},
        threshold={"highest": (MOST if up else LEAST) * schedule.base},
        cause="the factor by which it is multiplied at each step is above 1"
        if up
        else "the schedule's factor is tiny in every step, as if its function returned the rate itself and "
        "not a factor",
        fix=Fix("use a factor below 1" if up else "let the function return a factor between 0 and 1"),
    )


@lr_far_from_base.bad
def grows() -> Schedule:
    return sample_schedule(lambda done: 10.0 ** (done * 20))


@lr_far_from_base.bad
def rate_for_a_factor() -> Schedule:
    return sample_schedule(lambda done: BASE * (1 - done))


@lr_far_from_base.good
def warmup_and_cosine() -> Schedule:
    return sample_schedule()


@lr_far_from_base.good
def the_end_of_a_run() -> Schedule:
    """Resumed in the last steps of a cosine."""
    return sample_schedule(lambda done: 0.001 * (1 - done), resumed=True)
