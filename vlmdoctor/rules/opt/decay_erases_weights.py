"""decay-erases-weights: the weight decay of each step takes a large part of the weights."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.optimizer import Group, Optimizer
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

MOST, ALL = 0.05, 0.5  # of a weight, in one step


@rule("decay-erases-weights", "OPT111", explains=("loss-not-falling", "weights-not-moving", "loss-runs-away"))
def decay_erases_weights(optimizer: Optimizer) -> Iterator[Finding]:
    """Weight decay too high: with the learning rate it takes a twentieth of the weights in one step.

    ## Why it matters
    Decay multiplies each weight by (1 - lr x decay) in every step, whatever the gradient says: at a twentieth
    a pretrained weight is gone after a hundred steps.

    ## Confidence and false positives
    Computed from the groups. AdamW, SGD and their families shrink weights by that product; Adam with its
    decay in the gradient does not, and is not judged. Common settings are a thousandth of the limit and less.
    It is a warning, and an error where a step takes half.

    ## What to do
    A decay between 0 and 0.1 is usual; check whether decay and rate were exchanged.
    """
    # In Adam the decay is part of the gradient, which is then scaled to the rate.
    coupled = ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta")
    worst = max(
        (g for g in optimizer.groups if g.lr and g.weight_decay and g.optimizer not in coupled),
        key=lambda g: (g.lr or 0) * (g.weight_decay or 0),
        default=None,
    )
    taken = 0.0 if worst is None else (worst.lr or 0.0) * (worst.weight_decay or 0.0)
    if worst is None or taken < MOST:
        return
    share = "all" if taken >= 1 else f"{taken:.0%}"
    yield Finding(
        f"weight decay too high: it takes {share} of the weights in each step",
        Severity.ERROR if taken >= ALL else Severity.WARNING,
        at=(worst.first,) if worst.first else (),
        measured={"lr": worst.lr, "weight_decay": worst.weight_decay, "taken_in_a_step": taken},
        threshold={"taken_in_a_step": MOST},
        cause=f"{worst.optimizer} multiplies weights by 1 - lr x weight_decay = {1 - taken:.3g} in each step",
        fix=Fix("set a decay of 0.1 or less", ("weight_decay=0.01",)),
    )


@decay_erases_weights.bad
def a_tenth() -> Optimizer:
    return Optimizer(
        groups=(Group(optimizer="AdamW", lr=1e-2, weight_decay=10.0, tensors=3, first="vision_proj.weight"),)
    )


@decay_erases_weights.bad
def everything() -> Optimizer:
    return Optimizer(groups=(Group(optimizer="SGD", lr=1.0, weight_decay=1.0, tensors=3),))


@decay_erases_weights.good
def usual() -> Optimizer:
    return Optimizer(
        groups=(
            Group(optimizer="AdamW", lr=1e-3, weight_decay=0.1, tensors=3),
            Group(optimizer="Muon", lr=0.02, weight_decay=0.1, tensors=3),
            Group(optimizer="Adam", lr=0.1, weight_decay=1.0, tensors=3),
        )
    )
