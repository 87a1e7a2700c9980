"""epsilon-swamps-gradient: Adam divides by an epsilon that is far larger than the gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward, Gradient
from vlmdoctor.evidence.optimizer import Group, Optimizer
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters

LARGE = 1e-4  # an epsilon; the usual ones are 1e-8 to 1e-6, and gradients of large models are small too
TIMES = 1e3  # the gradients


@rule("epsilon-swamps-gradient", "OPT145", explains=("weights-not-moving", "batch-not-learned"))
def epsilon_swamps_gradient(
    optimizer: Optimizer, backward: Backward, parameters: Parameters
) -> Iterator[Finding]:
    """Adam's epsilon is a thousand times larger than the gradients, or more.

    ## Why it matters
    Adam's step is the learning rate times `m / (sqrt(v) + eps)`: about the learning rate, as long as the
    gradient is larger than eps. With `eps=1e8` instead of `1e-8`, or with two arguments exchanged, the step
    is that of SGD with a rate of lr / eps: weights change by weight decay only, and the loss does not fall.

    ## Confidence and false positives
    The root mean square of each tensor's gradient was measured on the batch; half of the tensors are more
    than a thousand times below an eps of at least 1e-4. Some recipes for convolutional networks use an eps as
    large as 1, with a learning rate to match, so it is a warning.

    ## What to do
    Use the optimizer's default eps, unless you know of a reason.
    """
    kinds = [g for g in optimizer.groups if g.optimizer.lower().startswith("adam") and (g.eps or 0) >= LARGE]
    if not kinds:
        return
    sizes = {p.name: p.numel for p in parameters.parameters}
    rms = [g.norm / math.sqrt(sizes[g.name]) for g in backward.gradients if g.norm and sizes.get(g.name)]
    if not rms:
        raise Unavailable("no gradient was measured")
    group, usual = kinds[0], median(rms)
    if usual * TIMES >= (group.eps or 0):
        return
    yield Finding(
        f"the eps of {group.optimizer} is {group.eps:.2g}, and the gradients are about {usual:.2g}",
        Severity.WARNING,
        at=(f"{group.optimizer}'s groups",),
        measured={
            "eps": group.eps,
            "gradient": usual,
            "share_of_the_step": usual / (usual + (group.eps or 0)),
        },
        threshold={"eps": TIMES * usual},
        cause=f"the step is {usual / (usual + (group.eps or 0)):.1g} of the learning rate; assumed: the "
        "rate was not chosen for that",
        fix=Fix("leave eps at its default", ("torch.optim.AdamW(parameters, lr=lr, eps=1e-8)",)),
    )


def _measured(eps: float) -> tuple[Optimizer, Backward, Parameters]:
    parameters = sample_parameters()
    gradients = tuple(
        Gradient(
            name=p.name, role=p.role, present=True, zero=False, finite=True, norm=1e-3 * math.sqrt(p.numel)
        )
        for p in parameters.parameters
    )
    groups = (Group(optimizer="AdamW", lr=1e-3, eps=eps, tensors=4),)
    return (
        Optimizer(groups=groups),
        Backward(loss=6.5, gradients=gradients, trainable=len(gradients), parameters=len(gradients)),
        parameters,
    )


@epsilon_swamps_gradient.bad
def a_minus_forgotten() -> tuple[Optimizer, Backward, Parameters]:
    return _measured(1e8)


@epsilon_swamps_gradient.good
def as_usual() -> tuple[Optimizer, Backward, Parameters]:
    return _measured(1e-8)


@epsilon_swamps_gradient.good
def large_and_below_the_gradients() -> tuple[Optimizer, Backward, Parameters]:
    return _measured(1e-3)
