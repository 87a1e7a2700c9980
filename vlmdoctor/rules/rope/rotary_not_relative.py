"""rotary-not-relative: attention with rotary positions depends on absolute positions."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("rotary-not-relative", "ROPE201")
def rotary_not_relative(influence: Influence) -> Iterator[Finding]:
    """RoPE is not relative: logits change when all positions are shifted by the same number.

    ## Why it matters
    Rotating queries and keys by their positions gives a product that depends on the distance alone. It does
    not if only one of them is rotated, if one is rotated twice, or if a table laid out in halves meets a
    rotation of neighbouring pairs: converted weights give bad answers, and nothing raises ([LLMs-from-scratch
    747](https://github.com/rasbt/LLMs-from-scratch/issues/747), [transformers
    25199](https://github.com/huggingface/transformers/issues/25199)).

    ## Confidence and false positives
    The positions that the rotary tables are made from (or the rows of stored tables) are shifted, for
    attention alone, so learned absolute positions don't matter. The tolerance is a tenth of what a reversed
    order of positions changes; rounded tables stay far below it. A model that rotates its values too, as some
    do on purpose, would be reported wrongly. A consistent layout in halves is as right as one in pairs, and
    is not reported.

    ## What to do
    Rotate q and k once each, with the same function, and pair the numbers as the table does:

        halves: cos = cat([angles, angles], -1).cos();        x * cos + cat([-x2, x1], -1) * sin
        pairs:  cos = angles.repeat_interleave(2, -1).cos();  x[0::2], x[1::2] rotate together
    """
    seen = influence.of("positions")
    if not seen.moves:
        return
    yield Finding(
        message=f"attention depends on absolute positions: shifting {seen.what} changes "
        f"{seen.moved_positions} of {seen.positions} tokens' logits",
        severity=Severity.ERROR,
        at=tuple(seen.detail.get("tables", ())[:4]),
        measured={"moved": seen.moved, "moved_by_reversed_positions": seen.effect},
        threshold={"moved": seen.allowed},
        cause=(
            "q and k are not rotated in the same way: only one of them is rotated, one is rotated twice, "
            "or the table's layout (halves or pairs) is not the rotation's; which was not established"
        ),
        certainty=Certainty.INFERRED,
        fix=Fix("rotate q and k once each, with the layout of the table", ("q, k = rotate(q), rotate(k)",)),
    )


@rotary_not_relative.bad
def only_q_is_rotated() -> Influence:
    change = Change(
        what="all positions by 16",
        moved=2e-3,
        allowed=2e-4,
        effect=2e-3,
        positions=32,
        moved_positions=30,
        row=0,
        position=5,
        detail={"tables": ("lm.rotary_emb",)},
    )
    return Influence(changes={"positions": change})


@rotary_not_relative.good
def relative() -> Influence:
    return Influence(
        changes={
            "positions": Change(
                what="all positions by 16",
                moved=1e-7,
                allowed=2e-4,
                effect=2e-3,
                positions=32,
                moved_positions=0,
                row=0,
                position=5,
            )
        }
    )
