"""attention-backends-differ: eager and sdpa attention of the same model give different logits."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

FEW = 0.05


@rule("attention-backends-differ", "MASK105")
def attention_backends_differ(influence: Influence) -> Iterator[Finding]:
    """Eager and sdpa attention give different logits.

    ## Why it matters
    All back ends compute one function. Where they don't, a mask, a scale or a cap is missing in one of them,
    and scores depend on which is installed: 81.6 and 72.6 for Qwen2-VL's vision tower ([transformers
    35749](https://github.com/huggingface/transformers/issues/35749)); a perplexity of 5 and 16 for Doge
    ([transformers 48821](https://github.com/huggingface/transformers/issues/48821)).

    ## Confidence and false positives
    The same batch is run with both, and only real tokens are compared. A difference is reported if it is at
    least a thousandth of the largest logit, and more than twenty times what one rounding of the embeddings
    changes, for more than a twentieth of the tokens. A choice that rounding flips (the nearest entry of a
    codebook, an expert) changes single tokens. A missing mask, scale or cap changes most of them. Models that
    cap scores in eager attention only are not judged. Which of the two is right is not established, so it is
    a warning.

    ## What to do
    Train and evaluate with the same back end, and compare both with a reference:
    `from_pretrained(..., attn_implementation="eager")`.
    """
    seen = influence.of("backend")
    if not seen.moves or seen.moved_positions < FEW * seen.positions:
        return
    yield Finding(
        message=f"logits of {seen.moved_positions} of {seen.positions} tokens change from {seen.what} "
        "attention",
        severity=Severity.WARNING,
        at=(f"row {seen.row}, token {seen.position}",),
        measured={"moved": seen.moved, "largest_logit": influence.scale},
        threshold={"moved": seen.allowed},
        cause="one back end applies a mask, scale or cap that the other doesn't; which was not established",
        certainty=Certainty.INFERRED,
        fix=Fix(
            "use one back end for training and evaluation, and find out which one is right",
            ('model.set_attn_implementation("eager")',),
        ),
    )


@attention_backends_differ.bad
def differ() -> Influence:
    return Influence(
        changes={
            "backend": Change(
                what="sdpa to eager",
                moved=0.3,
                allowed=4e-4,
                effect=None,
                positions=32,
                moved_positions=32,
                row=0,
                position=5,
            )
        },
        scale=0.4,
    )


@attention_backends_differ.good
def a_codeword_turned() -> Influence:
    return Influence(
        changes={
            "backend": Change(
                what="sdpa to eager",
                moved=1.3,
                allowed=0.7,
                effect=None,
                positions=568,
                moved_positions=4,
                row=1,
                position=40,
            )
        },
        scale=2.6,
    )


@attention_backends_differ.good
def agree() -> Influence:
    return Influence(
        changes={
            "backend": Change(
                what="sdpa to eager",
                moved=1e-7,
                allowed=4e-4,
                effect=None,
                positions=32,
                moved_positions=0,
                row=0,
                position=5,
            )
        },
        scale=0.4,
    )
