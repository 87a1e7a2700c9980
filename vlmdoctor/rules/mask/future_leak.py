"""future-leak: a supervised position attends to the tokens that it should predict."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Finding, Fix, Inferred, Proof, Severity
from vlmdoctor.knowledge.attention_calls import CALLS, causal_call
from vlmdoctor.rulebook import rule


@rule("future-leak", "MASK101", explains=("attention-backends-differ", "padding-moves-logits"))
def future_leak(influence: Influence) -> Iterator[Finding]:
    """Causal mask missing: logits change when a later token changes.

    ## Why it matters
    A position that sees the next token copies it: the loss falls towards zero, and `generate`, which has no
    next token, writes nonsense. It happens where a padding mask is passed in place of the causal one
    ([unsloth-zoo 963](https://github.com/unslothai/unsloth-zoo/issues/963)), where True means "hidden" to one
    function and "visible" to the next ([LLMs-from-scratch
    1062](https://github.com/rasbt/LLMs-from-scratch/issues/1062)), and after library updates ([transformers
    48745](https://github.com/huggingface/transformers/issues/48745)).

    ## Confidence and false positives
    One late token of the text is replaced, and the logits at earlier positions are compared bit for bit with
    those of the same pass before. Only supervised positions are compared. Prompts and image blocks with
    bidirectional attention by design (PaliGemma, Gemma 3, encoders) are not reported, nor are models whose
    labels are not the next tokens. A model that should attend to later tokens and is trained on the next
    token would be reported wrongly.

    ## What to do
    Apply a causal mask to the attention of the text: `is_causal=True`, or a lower-triangular mask:

        mask = torch.ones(T, T, dtype=torch.bool).tril()  # True: may attend
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask & padding[:, None, None, :])
    """
    seen = influence.of("later-token")
    if not seen.moves:
        return
    place = seen.detail.get("place")
    yield Finding(
        message=f"no causal mask: logits at {seen.moved_positions} of {seen.positions} supervised positions "
        "change when a later token changes",
        severity=Severity.ERROR,
        at=tuple(name for name in (place, f"row {seen.row}, token {seen.position}") if name),
        measured={"moved": seen.moved, "moved_at_the_token": seen.effect, "changed": seen.what},
        threshold={"moved": seen.allowed},
        cause=_cause(seen),
        proof=proof_of(seen),
        fix=_fix(seen),
    )


def _cause(seen: Change) -> str:
    if seen.detail.get("is_decoder") is False:
        return "config.is_decoder is False, which makes this family attend in both directions"
    place = seen.detail.get("place")
    where = f"{place} is the first module that lets it through" if place else "the module is unknown"
    if _proven(seen):
        return f"the attention of the text is not causal; {where}"
    return Inferred(f"{where}; its causal mask is missing, inverted or replaced")


def _fix(seen: Change) -> Fix:
    if seen.detail.get("is_decoder") is False:
        return Fix("build the model as a decoder", ("config.is_decoder = True",))
    classes = seen.detail.get("classes", ())
    # In the class that calls it the module goes by the last part of its name; an entry of a list has none.
    own = next((name.rpartition(".")[2] for name, kind in classes if kind in CALLS), "")
    text, line = causal_call([kind for _, kind in classes], f"self.{own}" if own.isidentifier() else None)
    return Fix(text, (line,))


def _proven(seen: Change) -> bool:
    fixed = seen.detail.get("moved_with_causal_mask")
    return fixed is not None and fixed <= seen.allowed


def proof_of(seen: Change) -> Proof | None:
    """What a causal mask in memory did; None where it was not tried or did not help."""
    if not _proven(seen):
        return None
    fixed = seen.detail["moved_with_causal_mask"]
    return Proof(
        tried="torch's attention made causal in memory",
        before=f"max logit change at earlier positions {seen.moved:.3g}",
        after=f"max logit change {fixed:.3g}",
    )


@future_leak.bad
def no_causal_mask() -> Influence:
    detail = {"token": 15, "place": "lm.layers.0.attention", "moved_with_causal_mask": 0.0}
    return Influence(
        changes={
            "later-token": Change(
                what="token 15 of row 0",
                moved=0.02,
                allowed=4e-6,
                effect=0.4,
                positions=11,
                moved_positions=11,
                row=0,
                position=14,
                detail=detail,
            )
        }
    )


@future_leak.bad
def encoder_trained_as_decoder() -> Influence:
    detail = {"token": 15, "is_decoder": False}
    return Influence(
        changes={
            "later-token": Change(
                what="token 15 of row 0",
                moved=5e-4,
                allowed=2e-6,
                effect=0.2,
                positions=15,
                moved_positions=15,
                row=0,
                position=3,
                detail=detail,
            )
        }
    )


@future_leak.good
def looks_back_only() -> Influence:
    return Influence(
        changes={
            "later-token": Change(
                what="token 15 of row 0",
                moved=0.0,
                allowed=4e-6,
                effect=0.4,
                positions=11,
                moved_positions=0,
                row=0,
                position=1,
            )
        }
    )
