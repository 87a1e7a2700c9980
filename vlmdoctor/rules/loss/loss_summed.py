"""loss-summed: the loss is the sum over tokens, or a mean that counts hidden labels too."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.evidence.loss_terms import LossTerms, Term
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

CLOSE = 1e-4  # relative
FEWEST = 4  # labels


@rule("loss-summed", "LOSS142", explains=("initial-loss", "tokens-summed", "masked-tokens-in-mean"))
def loss_summed(terms: LossTerms) -> Iterator[Finding]:
    """The loss is no mean over the labels: it is their sum, or hidden labels were counted too.

    ## Why it matters
    A sum grows with the length and the number of the samples, and so does every gradient: learning rates
    that work elsewhere are too high by that factor, long samples outweigh short ones, and clipping cuts every
    step. A mean over all places, hidden ones among them, does the opposite: the loss looks small, and an
    answer counts the less the more prompt and padding stand beside it. Whoever divides once more for
    accumulation gets the same trouble ([transformers
    34191](https://github.com/huggingface/transformers/issues/34191)).

    ## How sure it is
    The results of torch's cross-entropy were measured and the loss is exactly their sum (or their sum over
    all places). Whether it is divided later, in the training loop, is not known, and some sum on purpose: a
    warning.

    ## What to do
    Divide by the number of labels that count, over the whole step.
    """
    called = terms.needed()
    if terms.loss is None or not math.isfinite(terms.loss) or any(term.total is None for term in called):
        return
    if any(term.function == "binary_cross_entropy_with_logits" for term in called):
        return
    total = sum(term.total or 0.0 for term in called)
    targets, places = sum(term.targets for term in called), sum(term.places for term in called)
    if targets < FEWEST or total <= 0 or _same(terms.loss, total / targets):
        return
    measured = {"loss": terms.loss, "labels": targets, "mean_over_labels": total / targets}
    if _same(terms.loss, total):
        yield Finding(
            f"the loss is a sum over {targets:,} labels: {terms.loss:.4f}, where their mean is "
            f"{total / targets:.4f}",
            Severity.WARNING,
            at=("the loss",),
            measured=measured,
            threshold={"loss": total / targets},
            cause="the terms are added and not divided by their number, unless the training loop does that",
            fix=_FIX,
            links=_LINKS,
        )
    elif targets < 0.95 * places and _same(terms.loss, total / places):
        yield Finding(
            f"hidden labels are counted in the mean: {terms.loss:.4f}, over the labels alone it is "
            f"{total / targets:.4f}",
            Severity.WARNING,
            at=("the loss",),
            measured=measured | {"places": places},
            threshold={"loss": total / targets},
            cause=f"the sum over {targets:,} labels is divided by all {places:,} places, as .mean() of a "
            "loss with reduction='none' does",
            fix=_FIX,
            links=_LINKS,
        )


_FIX = Fix(
    "divide by the number of labels that count",
    ("loss = F.cross_entropy(logits, labels, ignore_index=-100)  # reduction='mean'",),
)
_LINKS = ("https://github.com/huggingface/transformers/issues/34191",)


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= CLOSE * abs(other)


def _sample(loss: float, reduction: str) -> LossTerms:
    term = Term("cross_entropy", 40, 12, 680, reduction, 12 * 6.5, -1.4, 1.6, (-20.0, 14.0), (6.6, 6.7), 12)
    return LossTerms(loss, (term,))


@loss_summed.bad
def summed() -> LossTerms:
    return _sample(12 * 6.5, "sum")


@loss_summed.bad
def hidden_ones_counted() -> LossTerms:
    return _sample(12 * 6.5 / 40, "none")


@loss_summed.good
def divided() -> LossTerms:
    return _sample(6.5, "sum")


@loss_summed.good
def with_another_term() -> LossTerms:
    return _sample(6.9, "mean")
