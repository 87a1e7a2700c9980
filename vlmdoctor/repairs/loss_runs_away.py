"""Lowers the learning rate by powers of ten until the batch is learned."""

from __future__ import annotations

import math

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import NotProven, Unavailable
from vlmdoctor.finding import Finding, Fix
from vlmdoctor.proof.prove import Attempt, Measurement
from vlmdoctor.proof.workbench import Trained, Workbench
from vlmdoctor.sandbox.clone import clone_together

DEPTH = "steps"
COPIES = True
OF_PARAMETERS = False
POWERS = 6
STEPS = 4
JUMP = 1.5  # times the first loss


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """The largest rate, among tenths of the given one, with which the loss falls."""
    if not bench.optimizers:
        raise Unavailable("no optimizer was given")
    given = max(float(group.get("lr", 0.0)) for o in bench.optimizers for group in o.param_groups)
    for power in range(1, POWERS + 1):
        trial = _copied(bench)
        _lower(trial, 10.0**-power)
        if _falls(trial.trained(STEPS)):
            _lower(bench, 10.0**-power)
            rate = given * 10.0**-power
            fix = Fix(
                f"take a learning rate of {rate:.3g} or less, and give the scheduler if the run has one"
            )
            return Attempt(f"a learning rate of {rate:.3g} instead of {given:.3g}", {"fix": fix})
    raise NotProven(f"no rate down to {given * 10.0**-POWERS:.3g} lowers the loss either")


def measure(bench: Workbench, finding: Finding) -> Measurement:
    """The loss after a few steps on this batch."""
    trained = bench.trained(STEPS)
    first, last = trained.losses[0], trained.losses[-1]
    top = max(trained.losses)
    over = f" over {top:.4g}" if top > 2 * max(first, last) else ""
    return Measurement(
        f"the loss goes from {first:.4g}{over} to {last:.4g} in {STEPS} steps", _falls(trained)
    )


def _falls(trained: Trained) -> bool:
    """Whether the loss fell, and not over far higher ones."""
    losses = trained.losses
    return all(math.isfinite(loss) for loss in losses) and trained.falls and max(losses) < JUMP * losses[0]


def _copied(bench: Workbench) -> Workbench:
    model, optimizers, schedulers = clone_together(bench.model, bench.optimizers, bench.schedulers)
    return Workbench(model, bench.batch, optimizers, schedulers, bench.loss_fn)


def _lower(bench: Workbench, factor: float) -> None:
    for optimizer in bench.optimizers:
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] = group[name] * factor
    for scheduler in bench.schedulers:
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
