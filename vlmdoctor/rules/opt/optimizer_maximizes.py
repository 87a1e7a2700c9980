"""optimizer-maximizes: the optimizer maximises a loss."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.optimizer import Group, Optimizer
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("optimizer-maximizes", "OPT110", explains=("loss-not-falling", "weights-not-moving", "loss-runs-away"))
def optimizer_maximizes(optimizer: Optimizer, forward: Forward) -> Iterator[Finding]:
    """Optimizer with `maximize=True` and a positive loss.

    ## Why it matters
    Each step makes the loss larger. It looks like a learning rate that is too high.

    ## Confidence and false positives
    The option was read and the loss measured. Objectives to maximise are negative losses or rewards, not
    cross-entropies: with a loss below 0 nothing is reported.

    ## What to do
    Leave `maximize` at False, its default; add an objective to maximise to the loss with a minus sign.
    """
    climbing = [group for group in optimizer.groups if group.maximize]
    if not climbing or forward.loss is None or forward.loss <= 0:
        return
    yield Finding(
        f"{climbing[0].optimizer} maximises the loss, which is {forward.loss:.4f}",
        Severity.ERROR,
        at=tuple(group.first for group in climbing if group.first)[:4],
        measured={"maximize": True, "loss": forward.loss},
        threshold={"maximize": False},
        cause="the optimizer was made with maximize=True",
        fix=Fix("remove maximize=True"),
    )


@optimizer_maximizes.bad
def climbs() -> tuple[Optimizer, Forward]:
    return Optimizer(groups=(Group(optimizer="AdamW", lr=1e-4, maximize=True, tensors=3),)), Forward(
        loss=4.6, finite=True
    )


@optimizer_maximizes.good
def descends() -> tuple[Optimizer, Forward]:
    return Optimizer(groups=(Group(optimizer="AdamW", lr=1e-4, tensors=3),)), Forward(loss=4.6, finite=True)


@optimizer_maximizes.good
def reward() -> tuple[Optimizer, Forward]:
    return Optimizer(groups=(Group(optimizer="AdamW", lr=1e-4, maximize=True, tensors=3),)), Forward(
        loss=-0.3, finite=True
    )
