"""loss-summed: the loss is the sum over tokens, and not their mean."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.evidence.loss_terms import LossTerms, Term
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

FEWEST = 4  # tokens: with fewer a weight of 1 may have another reason


@rule(
    "loss-summed",
    "LOSS142",
    explains=("initial-loss", "exploding-gradient"),
    formerly=("tokens-summed", "LOSS370"),
)
def loss_summed(terms: LossTerms | None, form: LossForm | None) -> Iterator[Finding]:
    """Loss is a sum over the supervised tokens instead of a mean.

    ## Why it matters
    Learning rates, clipping norms and loss curves are known for means. With a sum they are off by the number
    of supervised tokens, which differs from batch to batch: clipping at 1.0 then cuts every step, batches
    with long answers have the largest gradients, and twice the batch is twice the learning rate. Compare
    [transformers 34191](https://github.com/huggingface/transformers/issues/34191), where the division by the
    number of tokens was missing too.

    ## Confidence and false positives
    Measured in two ways, of which one is enough: the results of torch's cross-entropy add up to exactly the
    loss; or the gradient at the logits is that of a cross-entropy in which every token has a weight of
    exactly 1, whatever code made the loss. A batch that contains a number to divide by is not judged then. It
    is a warning, since a loop may divide later, by a number that the loss does not get; the finding names
    that assumption.

    ## What to do
    Take the mean over the supervised tokens, or divide by the tokens of the whole optimizer step.
    """
    summed = None if terms is None else terms.summed()
    if summed is None and form is None:
        raise Unavailable("the loss is computed without torch's cross-entropy, so its terms are not known")
    if summed is not None and summed.targets >= FEWEST and summed.is_sum:
        yield _finding(summed.loss, summed.targets, 1.0)
    elif form is not None and form.cross_entropy and form.weights.even and not form.weighted:
        weights = form.weights
        if weights.tokens >= FEWEST and abs(weights.total - weights.tokens) <= 0.02 * weights.tokens:
            yield _finding(weights.loss, weights.tokens, weights.total / weights.tokens)


def _finding(loss: float, tokens: int, weight: float) -> Finding:
    return Finding(
        f"the loss is the sum over its {tokens:,} tokens: {loss:.4g}, where their mean is "
        f"{loss / tokens:.4g}",
        Severity.WARNING,
        at=("the loss",),
        measured={
            "loss": loss,
            "tokens": tokens,
            "mean_over_tokens": loss / tokens,
            "weight_of_a_token": weight,
        },
        threshold={"loss": loss / tokens, "weight_of_a_token": 1 / tokens},
        cause="the loss is not divided by the number of supervised tokens, so loss and gradient are "
        f"{tokens:,} times those of a mean; assumed: nothing divides them later",
        fix=Fix(
            "take the mean over the supervised tokens",
            ('loss = F.cross_entropy(logits, labels, reduction="mean")',),
        ),
    )


def _called(loss: float, reduction: str) -> LossTerms:
    term = Term(
        function="cross_entropy",
        places=40,
        targets=12,
        classes=680,
        reduction=reduction,
        total=12 * 6.5,
        low=-1.4,
        high=1.6,
        sums=(-20.0, 14.0),
        log_sums=(6.6, 6.7),
        rows=12,
    )
    return LossTerms(loss=loss, terms=(term,))


@loss_summed.bad
def results_added() -> LossTerms:
    return _called(12 * 6.5, "sum")


@loss_summed.bad
def every_token_with_weight_one() -> LossForm:
    return LossForm(
        weights=Weights(loss=67.3, tokens=12, rows=(6, 6), total=12.0, lightest=1.0, heaviest=1.0)
    )


@loss_summed.bad
def both_ways() -> tuple[LossTerms, LossForm]:
    return _called(12 * 6.5, "sum"), LossForm(
        weights=Weights(loss=12 * 6.5, tokens=12, rows=(6, 6), total=12.0, lightest=1.0, heaviest=1.0)
    )


@loss_summed.good
def divided_afterwards() -> LossTerms:
    return _called(6.5, "sum")


@loss_summed.good
def with_another_term() -> LossTerms:
    return _called(6.9, "mean")


@loss_summed.good
def mean_over_tokens() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.6, tokens=12, rows=(6, 6), total=1.0, lightest=1 / 12, heaviest=1 / 12),
        labels=(6, 6),
        positions=28,
        scaled=0.5,
    )


@loss_summed.good
def divided_by_a_number_in_the_batch() -> LossForm:
    return LossForm(
        weights=Weights(loss=67.3, tokens=12, rows=(6, 6), total=12.0, lightest=1.0, heaviest=1.0),
        weighted=("num_items_in_batch",),
    )
