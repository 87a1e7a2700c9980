"""scheduler-not-restored: the optimizer was resumed, and its schedule starts again."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.optimizer import Optimizer, OptimizerState
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

LOW = 0.1  # of the rate that is scaled: a warm-up's first step
FEW = 1  # steps


@rule("scheduler-not-restored", "OPT147", formerly=("warmup-again",))
def scheduler_not_restored(optimizer: Optimizer) -> Iterator[Finding]:
    """Scheduler not restored: the warm-up begins again after a resume.

    ## Why it matters
    Weights and optimizer were loaded, the scheduler was not: the run warms up again, trains its last part at
    the rates of its first, and ends before the schedule does ([transformers
    33336](https://github.com/huggingface/transformers/issues/33336)). The loss jumps where it was resumed.

    ## Confidence and false positives
    Both counters are read: the optimizer has taken steps, the scheduler none, and the rate is below a tenth
    of the base rate, as at the start of a warm-up. A second stage that warms up again on purpose with the
    moments of the first would be reported, so it is a warning.

    ## What to do
    Save and load the scheduler's state dict with the optimizer's.
    """
    state = optimizer.needing_state()
    if state.last_epoch != 0 or state.steps <= FEW or not state.initial_lr or state.lr is None:
        return
    if state.lr >= LOW * state.initial_lr:
        return
    yield Finding(
        f"the scheduler was not restored: the optimizer has taken {state.steps:,} steps, and the warm-up "
        "begins again",
        Severity.WARNING,
        at=(state.scheduler or "the scheduler",),
        measured={"optimizer_steps": state.steps, "scheduler_steps": 0, "lr": state.lr},
        threshold={"scheduler_steps": state.steps},
        cause="the optimizer's state was loaded and the scheduler's was not; assumed: no second warm-up is "
        "intended",
        fix=Fix(
            "load the scheduler's state too",
            ("scheduler.load_state_dict(checkpoint['scheduler'])",),
        ),
    )


@scheduler_not_restored.bad
def scheduler_not_loaded() -> Optimizer:
    return Optimizer(
        state=OptimizerState(
            tensors=40, steps=500, lr=0.0, initial_lr=2e-4, scheduler="LambdaLR", last_epoch=0
        )
    )


@scheduler_not_restored.good
def both_loaded() -> Optimizer:
    return Optimizer(
        state=OptimizerState(
            tensors=40, steps=500, lr=1e-4, initial_lr=2e-4, scheduler="LambdaLR", last_epoch=500
        )
    )


@scheduler_not_restored.good
def stepped_once_an_epoch() -> Optimizer:
    return Optimizer(
        state=OptimizerState(
            tensors=40, steps=500, lr=2e-4, initial_lr=2e-4, scheduler="StepLR", last_epoch=0
        )
    )
