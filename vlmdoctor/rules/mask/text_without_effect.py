"""text-without-effect: other words give the same loss."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("text-without-effect", "MASK181", explains=("batch-not-learned", "loss-not-falling"))
def text_without_effect(influence: Influence) -> Iterator[Finding]:
    """Text has no effect on the loss of a model that compares images with texts.

    ## Why it matters
    Its text features are the same for all texts: they are taken at a position that attends to no word, such
    as the first token of a causal encoder, or at a wrong end token (`argmax` of ids finds the largest id,
    which is the end token in CLIP's vocabulary only). The loss stops at the logarithm of the number of texts,
    which looks like slow learning.

    ## Confidence and false positives
    Every word is replaced by another word of the batch, and the loss is identical to the last bit. How texts
    begin and end, their largest id and padding stay the same. Only models without logits for each token are
    judged.

    ## What to do
    Take the features at the last real token, or at the end token, looked up by its id.
    """
    seen = influence.of("text")
    if seen.moves or not seen.positions:
        return
    yield Finding(
        "the text has no effect: the loss is the same when all words are replaced",
        Severity.ERROR,
        at=("the texts",),
        measured={"moved": seen.moved, "words_exchanged": seen.positions},
        threshold={"moved": seen.allowed},
        cause="the text features are taken at a position that attends to no word, or never reach the loss "
        "(inferred)",
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
