"""scheduler-of-another-optimizer: the schedule sets the rates of an optimizer that is not stepped."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.optimizer import Group, Optimizer
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("scheduler-of-another-optimizer", "OPT112")
def scheduler_of_another_optimizer(optimizer: Optimizer) -> Iterator[Finding]:
    """Finds a scheduler that was made for another optimizer than the one that was given.

    ## Why it matters
    The optimizer was made again, as after unfreezing or wrapping the model, and the scheduler was not: it
    writes its rates into the old groups, and training goes on at one rate without warm-up or decay.

    ## How sure it is
    The groups of both were compared by identity, behind the wrappers of accelerate as well.

    ## What to do
    Make the scheduler after the optimizer, for that very optimizer.
    """
    if optimizer.scheduler is None or not optimizer.scheduler_foreign:
        return
    yield Finding(
        f"the {optimizer.scheduler} was made for another optimizer: the rates of this one stay as they are",
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
