"""loss-never-changes: the loss is constant, whatever the weights are."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.overfit import Overfit, Try
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

SAME = 1e-6  # relative
STEPS, TRIES = 8, 2


@rule("loss-never-changes", "LOSS379", explains=("batch-not-learned", "loss-not-falling"))
def loss_never_changes(overfit: Overfit) -> Iterator[Finding]:
    """Loss constant while gradients arrive and weights change.

    ## Why it matters
    A loss that compares the model with itself is constant: in DPO or distillation with a reference that is
    the model and not a copy, the margin is always 0 and the loss ln 2, while its gradient is not zero. The
    policy drifts away from the reference that it should stay near. The first step shows nothing: there policy
    and reference agree in a healthy run too ([NeMo-Aligner
    227](https://github.com/NVIDIA/NeMo-Aligner/issues/227)).

    ## Confidence and false positives
    Several steps were taken on a copy, with the given optimizer and with AdamW at rates up to 3e-2: no loss
    differed from the first by more than a millionth. It is tried only if gradients reach the weights.

    ## What to do
    Freeze a copy of the model as the reference: `copy.deepcopy(model).eval().requires_grad_(False)`.
    """
    tries = [one for one in (*overfit.ours, overfit.users) if one is not None and len(one.losses) >= STEPS]
    if len(tries) < TRIES or not overfit.ours or not all(_flat(one) for one in tries):
        return
    loss, steps = tries[0].losses[0], sum(len(one.losses) for one in tries)
    yield Finding(
        f"the loss is constant: {loss:.6g} in each of {steps} steps, while weights change",
        Severity.ERROR,
        at=("the loss",),
        measured={"loss": loss, "tries": len(tries)},
        threshold={"change": SAME},
        cause="the loss does not depend on the weights: it compares the model with itself, or with "
        "something that changes with it",
        certainty=Certainty.INFERRED,
        fix=Fix(
            "compare with a frozen copy", ("reference = copy.deepcopy(model).eval().requires_grad_(False)",)
        ),
    )


def _flat(one: Try) -> bool:
    return max(one.losses) - min(one.losses) <= SAME * abs(one.losses[0])


@loss_never_changes.bad
def the_reference_is_the_policy() -> Overfit:
    flat = Try(rate=3e-3, losses=(0.693147,) * 25)
    return Overfit(users=Try(rate=1e-3, losses=(0.693147,) * 8), ours=(flat, flat, flat, flat))


@loss_never_changes.good
def a_rate_too_low() -> Overfit:
    return Overfit(
        users=Try(rate=1e-12, losses=(0.693147,) * 8),
        ours=(Try(rate=3e-3, losses=(0.693147, 0.69, 0.66, 0.6)),),
    )
