"""text-without-effect: other words give the same loss."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("text-without-effect", "MASK181", explains=("batch-not-learned", "loss-not-falling"))
def text_without_effect(influence: Influence) -> Iterator[Finding]:
    """A model that compares images with texts gives the same loss for texts of other words.

    ## Why it matters
    Its text features are the same for all texts: they are taken at a place that sees no word, such as the
    first token of a causal encoder, or at the end mark where ids are sorted otherwise than the code thinks
    (`argmax` of ids finds the largest id, which is the end mark in CLIP's vocabulary alone). The loss stops
    at the logarithm of the number of texts, which looks like slow learning.

    ## How sure it is
    Every word is exchanged for another one that the batch knows, and the loss is the same to the last bit.
    How texts begin and end, their largest id and padding stay as they are. It is asked only of models without
    logits for each token.

    ## What to do
    Take the features at the last real token, or at the end mark, looked up by its id.
    """
    seen = influence.of("text")
    if seen.moves or not seen.positions:
        return
    yield Finding(
        "the words have no effect: the loss is the same when all of them are exchanged",
        Severity.ERROR,
        at=("the texts",),
        measured={"moved": seen.moved, "words_exchanged": seen.positions},
        threshold={"moved": seen.allowed},
        cause="the text's features are taken where no word is seen, or never reach the loss (inferred)",
        certainty=Certainty.INFERRED,
        fix=Fix("take them at the end of each text", ("features[torch.arange(len(ids)), mask.sum(1) - 1]",)),
    )


@text_without_effect.bad
def taken_at_the_first_token() -> Influence:
    return Influence(
        changes={"text": Change(what="all words", moved=0.0, allowed=0.0, effect=0.0, positions=48)}
    )


@text_without_effect.good
def taken_at_the_end() -> Influence:
    return Influence(
        changes={"text": Change(what="all words", moved=0.02, allowed=0.0, effect=0.02, positions=48)}
    )
