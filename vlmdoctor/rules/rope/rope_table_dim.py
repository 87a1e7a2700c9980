"""A rotary table whose width is not that of an attention head."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.failure import Failure
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.rotary import Rotary, TableRepair
from vlmdoctor.finding import Finding, Fix, Inferred, Proof, Severity
from vlmdoctor.rulebook import rule


@rule("rope-table-dim", "ROPE101", explains=("forward-raises",))
def rope_table_dim(forward: Forward) -> Iterator[Finding]:
    """RoPE table width differs from the head dimension, and the forward pass raises.

    ## Why it matters
    Rotary position embedding rotates pairs of numbers inside one head, so its cos and sin tables have
    `head_dim` columns (`hidden_size // num_heads`, unless the configuration sets `head_dim` itself). A table
    made from the hidden size raises an error that names neither: `The size of tensor a (32) must match the
    size of tensor b (320) at non-singleton dimension 3`. Reported as
    labmlai/annotated_deep_learning_paper_implementations#244, lucidrains/x-transformers#296,
    kyegomez/zeta#117; for an explicit `head_dim` that was not honoured, huggingface/candle#2358.

    ## Confidence and false positives
    The widths are measured where the exception was raised. Which size the table was made from is inferred
    from its width. Where the model stores the table, it is rebuilt in memory with the base that is read from
    the table itself, and the forward pass runs again: that is the proof line. A table made on the fly can't
    be rebuilt; the finding then says that the cause is inferred.

    ## What to do
    Make the tables from `head_dim`, or from the rotated part of it where only a part is rotated:

        head_dim = config.hidden_size // config.num_heads
        cos, sin = rotary_tables(head_dim, config.max_length, config.rope_theta)
    """
    rotary = forward.rotary
    if rotary is None or forward.failure is None or rotary.table_width == rotary.query_width:
        return
    width, head = rotary.table_width, rotary.query_width
    source, expected = made_from(rotary)
    applied = f"{rotary.applied_in} at {rotary.applied_file}:{rotary.applied_line}"
    why = f"{rotary.table} meets {rotary.query} in {applied}"
    if rotary.built_code:
        why += f"; the table is made by: {rotary.built_code}"
    proven = rotary.repair is not None and rotary.repair.error is None
    if not proven:
        why = Inferred(f"{why}; the width is the likely fault")
    yield Finding(
        message=f"the RoPE table has {width} columns and {rotary.query} has {head} per head{source}",
        severity=Severity.ERROR,
        at=tuple(name for name in (rotary.module, *rotary.stored_as) if name),
        file=rotary.built_file or rotary.applied_file,
        line=rotary.built_line or rotary.applied_line,
        measured={
            "table_width": width,
            "query_width": head,
            "hidden_size": rotary.hidden_size,
            "num_heads": rotary.num_heads,
            "head_dim": rotary.head_dim,
        },
        threshold={"table_width": head},
        cause=why,
        proof=_proof(rotary.repair, forward.failure) if rotary.repair else None,
        fix=Fix(f"make the tables from {expected}"),
    )


def made_from(rotary: Rotary) -> tuple[str, str]:
    """(what the table's width says about its origin, what it should be made from)."""
    width, head = rotary.table_width, rotary.query_width
    hidden, heads, head_dim = rotary.hidden_size, rotary.num_heads, rotary.head_dim
    if hidden is not None and heads and hidden // heads == head:
        expected = f"head_dim = hidden_size // num_heads = {hidden} // {heads} = {head}"
    else:
        expected = f"head_dim = {head}"
    if head_dim is not None and head < head_dim:
        expected = f"the rotated part of the head, {head} of {head_dim}"
        if width == head_dim:
            return ": it was built from the whole head_dim, and only a part of it is rotated", expected
    if width == hidden:
        return ": it was built from hidden_size", expected
    if hidden is not None and heads and width == hidden // heads:
        reason = f": it was built from hidden_size // num_heads, but head_dim is set to {head}"
        return reason, f"head_dim = {head}"
    if width == 2 * head:
        return ", which is twice as many", expected
    if 2 * width == head:
        return ", which is half as many", expected
    return "", expected


def _proof(repair: TableRepair, failure: Failure) -> Proof:
    tried = f"the tables rebuilt from head_dim={repair.head_dim} (theta {repair.theta:g})"
    if repair.error is not None:
        after = f"still raises {repair.error}"
    elif repair.loss is None:
        after = "the forward runs"
    else:
        after = f"the forward runs and the loss is {repair.loss:.4f}"
    return Proof(tried, f"the forward raises {failure.type}", after, works=repair.error is None)


FAILURE = Failure(
    type="RuntimeError",
    message="The size of tensor a (32) must match the size of tensor b (320)",
    module="lm",
)


@rope_table_dim.bad
def built_from_hidden_size() -> Forward:
    rotary = Rotary(
        table="cos",
        table_width=320,
        query="q",
        query_width=32,
        head_dim=32,
        num_heads=10,
        hidden_size=320,
        applied_file="model.py",
        applied_line=40,
        applied_in="apply_rotary",
        module="lm.layers.0.attention",
    )
    return Forward(failure=FAILURE, rotary=rotary)


@rope_table_dim.bad
def on_a_model() -> object:
    import torch

    from vlmdoctor.subject import Subject

    class Attention(torch.nn.Module):
        def __init__(self, hidden: int = 32, heads: int = 4) -> None:
            super().__init__()
            self.heads = heads
            self.qkv = torch.nn.Linear(hidden, 3 * hidden)
            frequencies = 1.0 / 10000.0 ** (torch.arange(0, hidden, 2).float() / hidden)
            angles = torch.outer(torch.arange(16).float(), frequencies)
            self.cos: torch.Tensor
            self.register_buffer("cos", torch.cat([angles, angles], dim=-1).cos())

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            q = q * self.cos[: x.shape[1]]
            return {"loss": torch.nn.functional.scaled_dot_product_attention(q, k, v).square().mean()}

    return Subject(Attention(), batch=(torch.ones(2, 8, 32),))


@rope_table_dim.good
def runs() -> Forward:
    return Forward(loss=6.52, finite=True, logits_shape=(2, 8, 680), vocab_size=680, supervised_tokens=4)
