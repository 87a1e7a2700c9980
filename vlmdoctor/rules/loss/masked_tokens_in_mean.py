"""masked-tokens-in-mean: the loss is divided by all positions, masked ones too."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.evidence.loss_terms import LossTerms, Term
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

FEWEST = 4  # tokens
MOST = 0.8  # of the positions: with more of them the two means can't be distinguished safely


@rule("masked-tokens-in-mean", "LOSS371", explains=("initial-loss",))
def masked_tokens_in_mean(terms: LossTerms | None, form: LossForm | None) -> Iterator[Finding]:
    """Masked tokens in the mean: the loss is divided by all positions, not by the supervised ones.

    ## Why it matters
    `(loss * mask).mean()` divides by prompt, image and padding too. The loss then looks better the more of a
    batch is padding, is far below ln(vocabulary) for a model that only guesses, and its gradient shrinks too:
    one large image or one long row in the batch takes weight from the answers of all the others.

    ## Confidence and false positives
    Measured in two ways, of which one is enough. The results of torch's cross-entropy, added up and divided
    by all their targets, are exactly the loss. Or the gradient at the logits is that of a cross-entropy whose
    weights are all one over the number of positions, and they stay so when the labels of one row are masked,
    while a mean over supervised tokens would get larger weights. It is a warning, since a constant divisor
    may be intended.

    ## What to do
    Divide by the number of supervised tokens, as in `(loss * mask).sum() / mask.sum()`.
    """
    summed = None if terms is None else terms.summed()
    if summed is None and form is None:
        raise Unavailable("the loss is computed without torch's cross-entropy, so its terms are not known")
    if summed is not None and summed.targets >= FEWEST and summed.is_mean_over_all:
        yield _finding(summed.loss, summed.targets, summed.places, summed.total / summed.targets)
    elif form is not None and (divisor := _divisor(form)) is not None:
        weights = form.weights
        yield _finding(weights.loss, weights.tokens, divisor, weights.loss / weights.total)


def _divisor(form: LossForm) -> int | None:
    """The number of positions that the loss is divided by; None where it is divided by another number."""
    weights, without = form.weights, form.without
    if not form.cross_entropy or not weights.even or form.weighted or without is None or not form.labels:
        return None
    each = weights.total / weights.tokens
    divisors = [form.positions, form.positions - len(weights.rows)]
    found = next((d for d in divisors if d > 0 and abs(each * d - 1) < 5e-3), None)
    if found is None or weights.tokens > MOST * found or not without.tokens:
        return None
    return None if abs(without.total / without.tokens * found - 1) > 5e-3 else found


def _finding(loss: float, tokens: int, divisor: int, mean: float) -> Finding:
    return Finding(
        f"masked tokens are in the mean: the loss is divided by all {divisor:,} positions, of which "
        f"{tokens:,} are supervised: {loss:.4g}, expected {mean:.4g}",
        Severity.WARNING,
        at=("the loss",),
        measured={"loss": loss, "tokens": tokens, "divided_by": divisor},
        threshold={"loss": mean, "divided_by": tokens},
        cause="the mean is taken after masking, over masked positions too, as .mean() of a loss with "
        "reduction='none' does; assumed: the number of positions is not intended as a constant divisor",
        fix=Fix("divide by the supervised tokens", ("loss = (loss * mask).sum() / mask.sum()",)),
    )


@masked_tokens_in_mean.bad
def results_divided_by_all() -> LossTerms:
    term = Term(
        function="cross_entropy",
        places=40,
        targets=12,
        classes=680,
        reduction="none",
        total=12 * 6.5,
        low=-1.4,
        high=1.6,
        sums=(-20.0, 14.0),
        log_sums=(6.6, 6.7),
        rows=12,
    )
    return LossTerms(loss=12 * 6.5 / 40, terms=(term,))


@masked_tokens_in_mean.bad
def mean_behind_the_mask() -> LossForm:
    return LossForm(
        weights=Weights(loss=2.4, tokens=12, rows=(6, 6), total=12 / 28, lightest=1 / 28, heaviest=1 / 28),
        positions=28,
        labels=(6, 6),
        masked_row=1,
        without=Weights(loss=1.2, tokens=6, rows=(6, 0), total=6 / 28, lightest=1 / 28, heaviest=1 / 28),
    )


@masked_tokens_in_mean.good
def mean_over_supervised() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.6, tokens=12, rows=(6, 6), total=1.0, lightest=1 / 12, heaviest=1 / 12),
        positions=28,
        labels=(6, 6),
        masked_row=1,
        without=Weights(loss=5.5, tokens=6, rows=(6, 0), total=1.0, lightest=1 / 6, heaviest=1 / 6),
    )
