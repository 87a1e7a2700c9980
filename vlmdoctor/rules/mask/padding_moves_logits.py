"""padding-moves-logits: the amount of padding changes the logits of real tokens."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

LINKS = (
    "https://github.com/huggingface/transformers/issues/29583",
    "https://github.com/huggingface/transformers/issues/33095",
    "https://github.com/tloen/alpaca-lora/issues/315",
)


@rule("padding-moves-logits", "MASK104", explains=("left-padding-seen", "hidden-tokens-seen"))
def padding_moves_logits(influence: Influence) -> Iterator[Finding]:
    """Padding changes the logits of real tokens.

    ## Why it matters
    A sample's padding depends on the longest sample of its batch. A model that attends to padding, or counts
    positions through it, gives a sample another answer in every batch. Causes are learned absolute positions
    with padding on the left and no `position_ids` ([transformers
    29583](https://github.com/huggingface/transformers/issues/29583), [alpaca-lora
    315](https://github.com/tloen/alpaca-lora/issues/315)), or a padding mask that is ignored or inverted.

    ## Confidence and false positives
    Three more padding tokens are added on the side where the batch already has them, with a mask of 0, and
    the logits of the real tokens are compared. The tolerance is twenty times what one rounding of the
    embeddings changes in this model. Recurrent layers, which read left padding by design, and rotary scalings
    that depend on the length are not judged.

    ## What to do
    Hide padded keys in the attention, and count positions from the first real token:

        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    """
    seen = influence.of("padding")
    if not seen.moves:
        return
    left = seen.detail.get("side") == "left"
    given = seen.detail.get("position_ids")
    if left and not given:
        why = "the batch is padded on the left without position_ids, so that positions may count the padding"
        fix = Fix(
            "pass position_ids that begin at the first real token, or pad on the right",
            ("position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)",),
        )
    else:
        why = "the padding mask may be ignored or inverted"
        fix = Fix(
            "hide the padded keys from attention: 1 means a real token",
            ("mask = attention_mask[:, None, None, :].bool()  # True: may be attended to",),
        )
    yield Finding(
        message=f"padding changes the logits: {seen.what} change those of {seen.moved_positions} of "
        f"{seen.positions} real tokens",
        severity=Severity.ERROR,
        at=(f"row {seen.row}, token {seen.position}",),
        measured={"moved": seen.moved, "side": seen.detail.get("side"), "position_ids_given": given},
        threshold={"moved": seen.allowed},
        cause=why,
        certainty=Certainty.INFERRED,
        fix=fix,
        links=LINKS,
    )


@padding_moves_logits.bad
def learned_positions_padded_left() -> Influence:
    detail = {"side": "left", "position_ids": False}
    change = Change(
        what="3 more padding tokens on the left",
        moved=0.4,
        allowed=4e-6,
        effect=None,
        positions=28,
        moved_positions=28,
        row=1,
        position=9,
        detail=detail,
    )
    return Influence(changes={"padding": change})


@padding_moves_logits.bad
def mask_inverted() -> Influence:
    detail = {"side": "right", "position_ids": False}
    change = Change(
        what="3 more padding tokens on the right",
        moved=0.02,
        allowed=4e-6,
        effect=None,
        positions=28,
        moved_positions=28,
        row=1,
        position=9,
        detail=detail,
    )
    return Influence(changes={"padding": change})


@padding_moves_logits.good
def unmoved() -> Influence:
    return Influence(
        changes={
            "padding": Change(
                what="3 more padding tokens on the left",
                moved=1e-7,
                allowed=4e-6,
                effect=None,
                positions=28,
                moved_positions=0,
                row=1,
                position=9,
            )
        }
    )
