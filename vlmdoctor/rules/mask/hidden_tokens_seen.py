"""hidden-tokens-seen: tokens that the padding mask hides are attended to all the same."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("hidden-tokens-seen", "MASK182", explains=("text-without-effect", "image-without-effect"))
def hidden_tokens_seen(influence: Influence) -> Iterator[Finding]:
    """Padding mask ignored or inverted: noise in the padding changes logits or loss.

    ## Why it matters
    An inverted mask shows a model the padding, and hides the text and the image. Torch's `key_padding_mask`
    is true where there is padding, the mask of transformers is 1 where there is none: passed from one to the
    other unchanged, it raises nothing ([torchTextClassifiers
    92](https://github.com/InseeFrLab/torchTextClassifiers/pull/92)). Without any mask a sample gets another
    answer in every batch.

    ## Confidence and false positives
    Only the embeddings at masked positions get noise. Shapes, token ids and position ids stay the same, so
    nothing may change. It is an error where logits of real tokens change, or where only the masked tokens
    have an effect. It is a warning where only the loss is known, since one of its terms may be a mean over
    all tokens.

    ## What to do
    Look at each call of attention: which of the two kinds of mask does it take?
    """
    seen = influence.of("hidden-tokens")
    if not seen.moves:
        return
    changes = influence.changes
    blind = [name for name in ("text", "images") if name in changes and not changes[name].moves]
    where = () if seen.row is None else (f"row {seen.row}, token {seen.position}",)
    yield Finding(
        f"{seen.what} are seen: with noise on them "
        + (f"{seen.moved_positions} of {seen.positions} real tokens" if where else "the loss")
        + (" get other logits" if where else " is another"),
        Severity.ERROR if where or blind else Severity.WARNING,
        at=("the padding mask", *where),
        measured={"moved": seen.moved},
        threshold={"moved": seen.allowed},
        cause="the padding mask is inverted on its way to attention: what it shows is not seen"
        if blind
        else "the padding mask is inverted or ignored on its way to attention",
        certainty=Certainty.MEASURED if blind else Certainty.INFERRED,
        fix=Fix(
            "hide the padding: torch's key_padding_mask is true where there is padding",
            ("key_padding_mask = attention_mask == 0",),
        ),
    )


@hidden_tokens_seen.bad
def inverted() -> Influence:
    return Influence(
        changes={
            "hidden-tokens": Change(
                what="the 4 tokens that the mask hides",
                moved=0.2,
                allowed=1e-4,
                effect=None,
                positions=20,
                moved_positions=20,
                row=1,
                position=3,
            )
        }
    )


@hidden_tokens_seen.bad
def by_the_loss_alone() -> Influence:
    return Influence(
        changes={
            "hidden-tokens": Change(
                what="the 4 tokens that the mask hides", moved=2e-4, allowed=5e-5, positions=4
            )
        }
    )


@hidden_tokens_seen.bad
def while_images_are_not() -> Influence:
    hidden = Change(what="the 4 tokens that the mask hides", moved=2e-4, allowed=5e-5, positions=4)
    return Influence(
        changes={
            "hidden-tokens": hidden,
            "images": Change(what="all images", moved=0.0, allowed=0.0, effect=0.0, positions=1),
        }
    )


@hidden_tokens_seen.good
def hidden() -> Influence:
    return Influence(
        changes={
            "hidden-tokens": Change(
                what="the 4 tokens that the mask hides",
                moved=0.0,
                allowed=1e-4,
                effect=None,
                positions=20,
                moved_positions=0,
                row=1,
                position=3,
            )
        }
    )
