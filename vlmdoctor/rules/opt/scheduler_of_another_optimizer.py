"""scheduler-of-another-optimizer: the schedule sets the rates of an optimizer that is not stepped."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.optimizer import Group, Optimizer
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("scheduler-of-another-optimizer", "OPT112")
def scheduler_of_another_optimizer(optimizer: Optimizer) -> Iterator[Finding]:
    """Scheduler belongs to another optimizer.

    ## Why it matters
    The optimizer was made again, as after unfreezing or wrapping the model, and the scheduler was not. The
    scheduler sets the rates of the old groups, and training continues at one rate without warm-up or decay.

    ## Confidence and false positives
    The groups of both were compared by identity, inside the wrappers of accelerate as well.

    ## What to do
    Make the scheduler after the optimizer, for that same optimizer.
    """
    if optimizer.scheduler is None or not optimizer.scheduler_foreign:
        return
    yield Finding(
        f"the {optimizer.scheduler} was made for another optimizer: the rates of this one stay constant",
        Severity.ERROR,
        at=(optimizer.scheduler,),
        measured={"groups_that_it_schedules": 0, "groups": len(optimizer.groups)},
        threshold={"groups_that_it_schedules": len(optimizer.groups)},
        cause="none of its optimizer's groups is one of this optimizer's",
        fix=Fix("make the scheduler for this optimizer, after it"),
    )


@scheduler_of_another_optimizer.bad
def of_the_first_optimizer() -> Optimizer:
    return Optimizer(
        groups=(Group(optimizer="AdamW", lr=1e-4, tensors=3),),
        scheduler="CosineAnnealingLR",
        scheduler_foreign=True,
    )


@scheduler_of_another_optimizer.good
def of_its_own() -> Optimizer:
    return Optimizer(
        groups=(Group(optimizer="AdamW", lr=1e-4, tensors=3),),
        scheduler="CosineAnnealingLR",
        scheduler_foreign=False,
    )
