"""loss-negated: each step makes the right tokens less likely."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule(
    "loss-negated",
    "LOSS373",
    formerly=("loss-sign-turned",),
    explains=("loss-not-falling", "initial-loss", "negative-loss"),
)
def loss_negated(form: LossForm) -> Iterator[Finding]:
    """Loss negated: gradient descent makes the labelled tokens less likely.

    ## Why it matters
    Gradient descent makes the labelled tokens less likely with every step, while the printed loss keeps
    falling and looks like progress.

    ## Confidence and false positives
    Measured at every supervised token: the gradient is the cross-entropy's own, times a negative weight. It
    is a warning, since unlearning a text works the same way; it assumes that these tokens should be learned.

    ## What to do
    Look for the sign: `cross_entropy` has its minus inside, `log_softmax(...).gather(...)` needs one.
    """
    weights = form.weights
    if not form.cross_entropy or weights.total >= 0 or form.weighted:
        return
    yield Finding(
        f"the loss is negated: at all {weights.tokens} labelled tokens the gradient has the wrong sign, and "
        "each step makes them less likely",
        Severity.WARNING,
        at=("the loss",),
        measured={"loss": weights.loss, "sum_of_the_weights": weights.total},
        threshold={"sum_of_the_weights": 1.0},
        cause="the loss is a cross-entropy times a negative number; assumed: these tokens should be "
        "learned, not unlearned",
        fix=Fix("flip the sign", ("loss = torch.nn.functional.cross_entropy(logits, labels)",)),
    )


@loss_negated.bad
def log_likelihood() -> LossForm:
    return LossForm(
        weights=Weights(loss=-5.3, tokens=12, rows=(6, 6), total=-1.0, lightest=1 / 12, heaviest=1 / 12),
        labels=(6, 6),
    )


@loss_negated.good
def cross_entropy() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.3, tokens=12, rows=(6, 6), total=1.0, lightest=1 / 12, heaviest=1 / 12),
        labels=(6, 6),
    )
