"""mask-inverted: a token attends to later tokens, and to no earlier ones."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.mask.future_leak import proof_of


@rule(
    "mask-inverted",
    "MASK160",
    explains=(
        "future-leak",
        "image-without-effect",
        "no-gradient",
        "padding-moves-logits",
        "attention-backends-differ",
        "wrong-image",
    ),
)
def mask_inverted(influence: Influence) -> Iterator[Finding]:
    """Causal mask inverted: tokens attend to later tokens and not to earlier ones.

    ## Why it matters
    What comes before the answer (the question, the image) has no effect on it, and the next token can be
    copied instead of predicted: the loss falls, and nothing useful is learned. True means "hidden" to
    `nn.MultiheadAttention` and "visible" to `scaled_dot_product_attention` ([LLMs-from-scratch
    1062](https://github.com/rasbt/LLMs-from-scratch/issues/1062)).

    ## Confidence and false positives
    Both are measured: a changed later token changes supervised logits before it, and a changed early token
    changes its own logits and none after it.

    ## What to do
    Invert the mask, and keep its diagonal:

        mask = torch.ones(T, T, dtype=torch.bool).tril()  # True: may attend, for scaled_dot_product_attention
        nn_mha_mask = ~mask  # True: hidden, for nn.MultiheadAttention
    """
    seen = influence.of("later-token")
    if not seen.moves or seen.detail.get("looks_back") is not False:
        return
    place = seen.detail.get("place")
    yield Finding(
        "the causal mask is inverted: tokens attend to later tokens, and to no earlier ones",
        Severity.ERROR,
        at=tuple(name for name in (place, f"row {seen.row}, token {seen.position}") if name),
        measured={"moved_by_a_later_token": seen.moved, "moved_by_an_earlier_token": 0.0},
        threshold={"moved_by_a_later_token": seen.allowed},
        cause=f"the attention mask is inverted; {place or 'an unknown module'} is the first module that "
        "lets later tokens through",
        proof=proof_of(seen),
        fix=Fix("invert the mask", ("mask = torch.ones(T, T, dtype=torch.bool).tril()  # True: may attend",)),
    )


def _influence(looks_back: bool) -> Influence:
    detail = {"token": 15, "place": "lm.layers.0", "moved_with_causal_mask": 0.0, "looks_back": looks_back}
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


@mask_inverted.bad
def upside_down() -> Influence:
    return _influence(looks_back=False)


@mask_inverted.good
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
