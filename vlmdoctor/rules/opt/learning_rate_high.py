"""learning-rate-high: Adam's steps are ten times as large as useful ones."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator

from vlmdoctor.evidence.optimizer import Group, Optimizer
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters, sample_steps

RATE, RATIO = 1e-2, 0.05
USEFUL = 0.005  # of a matrix's size in one step


@rule("learning-rate-high", "OPT141", explains=("exploding-gradient", "vanishing-gradient"))
def learning_rate_high(steps: Steps, parameters: Parameters, optimizer: Optimizer) -> Iterator[Finding]:
    """Learning rate too high for Adam: each step changes the weights by a twentieth of their size or more.

    ## Why it matters
    Adam moves each weight by about the learning rate, whatever the size of its gradient. At 3e-2 a few steps
    overwrite the weights, pretrained ones included. One batch may still be overfitted, and so the loss looks
    well at first; on new batches it stays high or diverges. The rate was often meant for SGD, or is off by a
    power of ten.

    ## Confidence and false positives
    The optimizer (with its scheduler) took a few steps on this batch, which were undone. Reported if the rate
    is 1e-2 or more, the optimizer is one of Adam's family, and half of all weight matrices changed by a
    twentieth of their size or more in the median step; useful steps change them by a thousandth to a
    hundredth. It is a warning, since small models may bear it, and since a warm-up that is not given as
    `lr_scheduler` may begin far lower.

    ## What to do
    Use 1e-4 to 1e-3 for new weights and 1e-6 to 5e-5 for pretrained ones, with a warm-up.
    """
    groups = [group for group in optimizer.groups if "adam" in group.optimizer.lower()]
    if not groups or len(groups) < len(optimizer.groups) or steps.nonfinite is not None:
        return
    high = {p.name: p.lr for p in parameters.parameters if len(p.shape) > 1 and (p.lr or 0.0) >= RATE}
    ratios = [t.update_ratio for t in steps.tracks if t.name in high and t.update_ratio is not None]
    if not ratios or (middle := statistics.median(ratios)) < RATIO:
        return
    rate = max(lr for lr in high.values() if lr is not None)
    usual = min(1e-3, rate * USEFUL / middle)
    yield Finding(
        f"learning rate {rate:g} is too high for {groups[0].optimizer}: a step changes the weights by "
        f"{middle:.0%} of their size",
        Severity.WARNING,
        at=("optimizer", "lr"),
        measured={"lr": rate, "update_over_weights": float(f"{middle:.3g}"), "matrices": len(ratios)},
        threshold={"lr": RATE, "update_over_weights": RATIO},
        cause="Adam moves each weight by about the learning rate, and that is a large part of these weights",
        certainty=Certainty.MEASURED,
        fix=Fix(
            "lower the learning rate until a step changes the weights by a hundredth of their size or less",
            (f"optimizer = torch.optim.{groups[0].optimizer}(model.parameters(), lr={usual:.0e})",),
        ),
    )


def _sample(ratio: float) -> Steps:
    run = sample_steps(8)
    return dataclasses.replace(
        run, tracks=tuple(dataclasses.replace(track, update_ratio=ratio) for track in run.tracks)
    )


def _parameters(rate: float) -> Parameters:
    return sample_parameters(lambda parameter: {"lr": rate})


@learning_rate_high.bad
def the_rate_of_another_optimizer() -> tuple[Steps, Parameters, Optimizer]:
    return _sample(0.11), _parameters(3e-2), Optimizer(groups=(Group(optimizer="AdamW", lr=3e-2),))


@learning_rate_high.good
def a_usual_rate() -> tuple[Steps, Parameters, Optimizer]:
    return _sample(0.01), _parameters(1e-3), Optimizer(groups=(Group(optimizer="AdamW", lr=1e-3),))


@learning_rate_high.good
def sgd_at_a_tenth() -> tuple[Steps, Parameters, Optimizer]:
    return _sample(0.11), _parameters(0.1), Optimizer(groups=(Group(optimizer="SGD", lr=0.1),))
