"""gradients-pile-up: gradients are never zeroed."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters, sample_steps


@rule(
    "gradients-pile-up",
    "OPT102",
    explains=(
        "exploding-gradient",
        "non-finite",
        "loss-not-falling",
        "accuracy-below-gate",
    ),
)
def gradients_pile_up(steps: Steps) -> Iterator[Finding]:
    """Gradients not zeroed between optimizer steps.

    ## Why it matters
    Each step applies the sum of all batches so far, its norm grows with the number of steps, and the run
    learns badly or diverges ([DN-DETR 19](https://github.com/IDEA-Research/DN-DETR/issues/19), [PyTorch
    47175](https://github.com/pytorch/pytorch/issues/47175)).

    ## Confidence and false positives
    Measured: after an optimizer step the gradients were still there when the next backward pass began, and
    that pass added to them. Accumulation over micro-batches within one optimizer step is not reported.

    ## What to do
    Call `optimizer.zero_grad()` once after (or before) each `optimizer.step()`, on the optimizer that holds
    the model."""
    if not steps.accumulates_without_reset:
        return
    yield Finding(
        "gradients are not zeroed between optimizer steps: they accumulate",
        Severity.ERROR,
        at=("optimizer.zero_grad",),
        measured={"zeroed_between_steps": False},
        threshold={"zeroed_between_steps": True},
        cause="the next backward pass began with the last step's gradients still there, and added to them",
        fix=Fix(
            "zero the gradients after each optimizer step", ("optimizer.step()", "optimizer.zero_grad()")
        ),
    )


@gradients_pile_up.bad
def never_zeroed() -> tuple[Parameters, Steps]:
    return sample_parameters(), sample_steps(accumulates_without_reset=True)


@gradients_pile_up.good
def zeroed() -> tuple[Parameters, Steps]:
    return sample_parameters(), sample_steps(accumulates_without_reset=False)
