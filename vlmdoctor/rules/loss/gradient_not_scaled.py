"""gradient-not-scaled: half the loss does not have half the gradient."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("gradient-not-scaled", "LOSS376")
def gradient_not_scaled(form: LossForm) -> Iterator[Finding]:
    """Gradient does not follow the scale of the loss: a custom backward ignores `grad_output`.

    ## Why it matters
    Dividing the loss by the micro-batches, multiplying it with a gradient scaler or weighing it against
    another loss all work by scaling the gradient that `backward` gets. A fused loss whose `backward` returns
    a gradient that it made in `forward`, without multiplying it by `grad_output`, ignores all three:
    accumulation over N micro-batches takes gradients N times as large, and unscaling makes float16 gradients
    vanish.

    ## Confidence and false positives
    Measured: the gradient at the logits was taken for the loss and for half of it, in the same pass. Any
    differentiable loss gives half the gradient for half the loss.

    ## What to do
    Multiply what `backward` returns by the `grad_output` that it is given.
    """
    if form.scaled is None or abs(form.scaled - 0.5) < 0.01:
        return
    yield Finding(
        f"half the loss has {form.scaled:.3g} times the gradient, expected 0.5 times: scaling the loss has "
        "no effect",
        Severity.ERROR,
        at=("the loss",),
        measured={"gradient_of_half_the_loss": form.scaled},
        threshold={"gradient_of_half_the_loss": 0.5},
        cause="a backward between the logits and the loss does not multiply by grad_output",
        fix=Fix(
            "multiply by grad_output",
            ("def backward(ctx, grad_output): return ctx.saved_tensors[0] * grad_output",),
        ),
    )


@gradient_not_scaled.bad
def made_in_forward() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.6, tokens=12, rows=(6, 6), total=1.0, lightest=1 / 12, heaviest=1 / 12),
        scaled=1.0,
    )


@gradient_not_scaled.good
def scaled() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.6, tokens=12, rows=(6, 6), total=1.0, lightest=1 / 12, heaviest=1 / 12),
        scaled=0.5,
    )
