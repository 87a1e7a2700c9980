"""uninitialised-buffer: a buffer that differs from what its module computes."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.buffers import Buffers, Table
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

WRONG = 0.1


@rule(
    "uninitialised-buffer",
    "ROPE203",
    formerly=("table-garbage",),
    explains=("rotary-not-relative", "non-finite-forward", "forward-raises"),
)
def uninitialised_buffer(buffers: Buffers) -> Iterator[Finding]:
    """Uninitialised buffer: a table that no checkpoint holds has wrong values.

    ## Why it matters
    Non-persistent buffers are in no checkpoint. A model that was made on the meta device and allocated by
    `to_empty` or `empty_like` keeps whatever that memory held: usually finite numbers, so nothing raises and
    only the order of the tokens is lost ([transformers
    45902](https://github.com/huggingface/transformers/issues/45902), [lmms-engine
    185](https://github.com/EvolvingLMMs-Lab/lmms-engine/issues/185), [SkyRL
    1725](https://github.com/NovaSky-AI/SkyRL/issues/1725)).

    ## Confidence and false positives
    Where the module can be created again from its own configuration, its table is compared with the fresh
    one, and reported if a cosine differs by more than 0.1 and not by rounding. Other tables are reported only
    if their values are impossible: NaN, infinity, all numbers equal, cosines above 10. Frequencies that were
    overwritten on purpose, with the configuration unchanged, would be reported too.

    ## What to do
    Compute the buffers again after `to_empty`, or let `from_pretrained` build the model:

        module.inv_freq = type(module)(module.config).inv_freq.to(module.inv_freq.device)
    """
    wrong = [table for table in buffers.tables if _is_wrong(table)]
    if not wrong:
        return
    first = wrong[0]
    if first.problem:
        what = f"is {first.problem}"
    else:
        what = f"is not what {first.owner} makes from its configuration"
    yield Finding(
        message=f"{first.name} {what}" + (f" ({len(wrong)} such tables)" if len(wrong) > 1 else ""),
        severity=Severity.ERROR,
        at=tuple(table.name for table in wrong[:8]),
        measured={"problem": first.problem, "largest_error_of_a_cosine": first.error, "theta": first.theta},
        threshold={"error_of_a_cosine": WRONG},
        cause=(
            "it is in no checkpoint, and holds what was in memory when the model left the meta device, or it "
            "was overwritten (inferred)"
        ),
        certainty=Certainty.INFERRED,
        fix=Fix(
            "compute it again after the model is allocated",
            ("module.inv_freq = type(module)(module.config).inv_freq.to(module.inv_freq.device)",),
        ),
    )


def _is_wrong(table: Table) -> bool:
    if table.problem is not None:
        return True
    return table.rebuilt and not table.rounded and (table.error or 0.0) > WRONG


@uninitialised_buffer.bad
def after_to_empty() -> Buffers:
    table = Table(
        name="model.rotary_emb.inv_freq",
        owner="LlamaRotaryEmbedding",
        dtype="float32",
        rebuilt=True,
        error=1.9,
    )
    return Buffers(tables=(table,))


@uninitialised_buffer.bad
def zeros() -> Buffers:
    return Buffers(tables=(Table(name="cos", owner="Attention", dtype="float32", problem="all alike"),))


@uninitialised_buffer.good
def as_made() -> Buffers:
    table = Table(
        name="model.rotary_emb.inv_freq",
        owner="LlamaRotaryEmbedding",
        dtype="float32",
        rebuilt=True,
        rounded=True,
        error=0.0,
    )
    return Buffers(tables=(table,))
