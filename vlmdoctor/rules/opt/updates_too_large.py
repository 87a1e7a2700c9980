"""updates-too-large: one step changes the weights by more than their own size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_steps
from vlmdoctor.rules.places import listed

LARGE, FIRST, FALLEN = 2.0, 3, 0.9
# Neither of them starts at zero as a whole, as a projector or an adapter may.
NEVER_ZERO = ("language", "vision")


@rule(
    "updates-too-large",
    "OPT140",
    explains=(
        "learning-rate-high",
        "exploding-gradient",
        "vanishing-gradient",
        "loss-not-falling",
    ),
)
def updates_too_large(steps: Steps) -> Iterator[Finding]:
    """Updates too large: the first steps change the weights by twice their size or more.

    ## Why it matters
    Such a step overwrites the weights, pretrained ones included. Often the loss does not even diverge: with
    norms before the head the logits become constant, the loss stays at that of guessing, and the gradient is
    exactly zero from then on. Causes are a learning rate for another optimizer, a rate in other units (1e3
    for 1e-3), or a summed loss with plain SGD.

    ## Confidence and false positives
    Update and weights were measured in the first three steps: useful ones change a part by a thousandth to a
    tenth of its weights. It is an error from twice on, and only where the loss has not fallen by a tenth.
    Projectors and adapters alone are not judged, since they may start at zero, nor are runs that end in NaN,
    which have a rule of their own.

    ## What to do
    Lower the learning rate by the factor that was measured: 1e-4 to 1e-3 for AdamW, at most 0.1 for SGD.
    """
    if steps.nonfinite is not None:
        return  # `non-finite` reports the divergence
    found: dict[str, float] = {}
    for step in [step for step in steps.steps if step.role_update_ratios][:FIRST]:
        for role, ratio in step.role_update_ratios.items():
            if role in NEVER_ZERO and math.isfinite(ratio) and ratio >= LARGE:
                found[role] = max(found.get(role, 0.0), ratio)
    if not found:
        return
    losses = [loss for _, loss in steps.losses]
    if len(losses) > 1 and math.isfinite(losses[-1]) and losses[-1] < FALLEN * losses[0]:
        return
    rates = [step.lr for step in steps.steps[:FIRST] if step.lr is not None]
    largest = max(found.values())
    yield Finding(
        f"updates too large: one step changes the {listed(sorted(found))} weights by {largest:.3g} times "
        "their size",
        Severity.ERROR,
        at=("optimizer", *(["lr"] if rates else [])),
        measured={
            "update_over_weights": {role: float(f"{ratio:.3g}") for role, ratio in sorted(found.items())},
            "lr": max(rates, default=None),
            "losses": losses[:FIRST],
        },
        threshold={"update_over_weights": LARGE},
        cause="the learning rate"
        + (f" of {max(rates):g}" if rates else "")
        + " is far too high for these weights and this optimizer",
        fix=Fix(
            "lower it until a step changes the weights by a hundredth of their size or less",
            ("optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)",),
        ),
        step=steps.steps[0].step,
    )


def _sample(ratio: float, loss: float) -> Steps:
    run = sample_steps(8, loss=lambda step: 6.5 if step == 0 else loss, every=1)
    changed = [
        dataclasses.replace(step, role_update_ratios={"language": ratio, "projector": ratio}, lr=1000.0)
        for step in run.steps
    ]
    return dataclasses.replace(run, steps=tuple(changed))


@updates_too_large.bad
def a_rate_of_a_thousand() -> Steps:
    return _sample(240.0, 6.52)


@updates_too_large.good
def a_usual_rate() -> Steps:
    return _sample(0.01, 6.0)
