"""tokens-summed: the loss is the sum over tokens, and not their mean."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

FEWEST = 4  # tokens: with fewer a weight of 1 may be another's doing


@rule("tokens-summed", "LOSS370", explains=("initial-loss", "exploding-gradient"))
def tokens_summed(form: LossForm) -> Iterator[Finding]:
    """The loss is a sum over the supervised tokens: it and its gradient grow with their number.

    ## Why it matters
    A learning rate, a clipping norm and a loss curve are known for means. With a sum they are off by the
    number of supervised tokens, which differs from batch to batch: clipping at 1.0 then cuts every step,
    batches with long answers pull hardest, and twice the batch is twice the learning rate. Compare
    [transformers 34191](https://github.com/huggingface/transformers/issues/34191), where the division by the
    number of tokens was lost too.

    ## How sure it is
    Measured on the gradient at the logits: it is that of a cross-entropy in which every token has a weight of
    exactly 1. A batch that brings a number to divide by is left alone. It is a warning since a loop may
    divide later on, by a number that the loss does not see; that is the assumption it names.

    ## What to do
    Take the mean over the supervised tokens, or divide by the tokens of the whole optimizer step.
    """
    weights = form.weights
    if not form.cross_entropy or not weights.even or weights.tokens < FEWEST or form.weighted:
        return
    if abs(weights.total - weights.tokens) > 0.02 * weights.tokens:
        return
    yield Finding(
        f"the loss is the sum over its {weights.tokens} tokens: {weights.loss:.4g}, where their mean is "
        f"{weights.loss / weights.tokens:.4g}",
        Severity.WARNING,
        at=("the loss",),
        measured={"weight_of_a_token": weights.total / weights.tokens, "tokens": weights.tokens},
        threshold={"weight_of_a_token": 1 / weights.tokens},
        cause="it is not divided by the number of supervised tokens, so that loss and gradient are "
        f"{weights.tokens} times those of a mean here; assumed: nothing divides them later",
        fix=Fix(
            "take the mean over the supervised tokens",
            ('loss = F.cross_entropy(logits, labels, reduction="mean")',),
        ),
        links=("https://github.com/huggingface/transformers/issues/34191",),
    )


@tokens_summed.bad
def reduction_sum() -> LossForm:
    return LossForm(Weights(67.3, 12, (6, 6), 12.0, 1.0, 1.0))


@tokens_summed.good
def mean_over_tokens() -> LossForm:
    return LossForm(Weights(5.6, 12, (6, 6), 1.0, 1 / 12, 1 / 12), labels=(6, 6), positions=28, scaled=0.5)


@tokens_summed.good
def divided_by_a_number_in_the_batch() -> LossForm:
    return LossForm(Weights(67.3, 12, (6, 6), 12.0, 1.0, 1.0), weighted=("num_items_in_batch",))
