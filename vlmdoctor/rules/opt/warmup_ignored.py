"""warmup-ignored: warmup_steps are set and the schedule has no warm-up."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.training_args import TrainingArgs
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("warmup-ignored", "OPT304")
def warmup_ignored(arguments: TrainingArgs) -> Iterator[Finding]:
    """`warmup_steps` ignored by the schedule `constant`.

    ## Why it matters
    transformers has two constant schedules, and only `constant_with_warmup` warms up; the other one takes the
    number and ignores it. The first steps are then taken at the full rate, with Adam's second moments
    still unknown.

    ## Confidence and false positives
    Certain for `Trainer` and all that makes its schedules from these arguments.

    ## What to do
    Set `lr_scheduler_type="constant_with_warmup"`, or `warmup_steps=0` if none is wanted.
    """
    if arguments.scheduler != "constant" or not arguments.warmup:
        return
    yield Finding(
        f"warmup_steps is ignored: {arguments.warmup:,} steps were given, and the schedule 'constant' has "
        "no warm-up",
        Severity.WARNING,
        at=("training_args.lr_scheduler_type",),
        measured={"lr_scheduler_type": "constant", "warmup_steps": arguments.warmup},
        threshold={"warmup_steps": 0},
        cause="the schedule 'constant' ignores warm-up steps",
        fix=Fix("choose the schedule with a warm-up", ('lr_scheduler_type="constant_with_warmup"',)),
    )


@warmup_ignored.bad
def constant() -> TrainingArgs:
    return TrainingArgs(steps=1000, scheduler="constant", warmup=30)


@warmup_ignored.good
def constant_with_warmup() -> TrainingArgs:
    return TrainingArgs(steps=1000, scheduler="constant_with_warmup", warmup=30)
