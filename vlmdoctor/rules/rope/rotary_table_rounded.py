"""rotary-table-rounded: rotary frequencies that were cast to half precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmdoctor.evidence.buffers import Buffers, Table
from vlmdoctor.finding import Finding, Fix, Proof, Severity
from vlmdoctor.rulebook import rule


@rule("rotary-table-rounded", "ROPE202")
def rotary_table_rounded(buffers: Buffers) -> Iterator[Finding]:
    """RoPE frequencies rounded to half precision.

    ## Why it matters
    An angle is a position times a frequency: an error of 0.2% in the frequency is a quarter of a rotation at
    position 800. `model.to(torch.bfloat16)` casts the buffer of frequencies along with the weights (loading
    with `dtype=torch.bfloat16` does not), and casting back does not restore the digits. Loss and logits
    differ from the reference more the longer the text ([transformers
    29285](https://github.com/huggingface/transformers/issues/29285),
    [25681](https://github.com/huggingface/transformers/issues/25681), [gpt-neox
    1003](https://github.com/EleutherAI/gpt-neox/issues/1003)).

    ## Confidence and false positives
    The table is computed again in float32, and the largest difference in a cosine is measured, over as many
    positions as the model allows (at most 4096). It is reported from 0.1 on. A model that was trained with
    such a table from the start works with it, so it is a warning.

    ## What to do
    Load in the intended dtype, or keep the weights in float32 and use autocast; else restore the frequencies
    after the cast.
    """
    rounded = [t for t in buffers.tables if t.rounded and t.error is not None and t.first_wrong is not None]
    if not rounded:
        return
    worst = max(rounded, key=lambda table: table.error or 0.0)
    yield Finding(
        message=f"the rotary frequencies were rounded to half precision: a cosine is off by "
        f"{worst.error:.2g} within {worst.positions} positions",
        severity=Severity.WARNING,
        at=tuple(table.name for table in rounded[:8]),
        measured={"largest_error_of_a_cosine": worst.error, "first_position": worst.first_wrong},
        threshold={"error_of_a_cosine": 0.1},
        cause="the buffer was cast with the weights, as model.to(torch.bfloat16) or .half() does",
        proof=Proof(
            "frequencies computed again in float32",
            f"the cosines are off by up to {worst.error:.2g}",
            "they match the configuration",
        ),
        fix=Fix(
            "load in bfloat16 instead of casting, or use autocast over float32 weights",
            ("model = AutoModel.from_pretrained(name, dtype=torch.bfloat16)",),
        ),
    )


def _table(**fields: Any) -> Table:
    return Table(
        name="model.rotary_emb.inv_freq",
        owner="LlamaRotaryEmbedding",
        dtype="bfloat16",
        rebuilt=True,
        positions=2000,
        **fields,
    )


@rotary_table_rounded.bad
def cast_to_bfloat16() -> Buffers:
    return Buffers(tables=(_table(rounded=True, error=1.87, first_wrong=51),))


@rotary_table_rounded.good
def short_texts_only() -> Buffers:
    return Buffers(tables=(_table(rounded=True, error=0.02),))
