"""constant-positions: the tokens of a row have one position, or positions that decrease."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.positions import Counted, Place, Positions
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

FEWEST, MOST = 3, 0.5  # pairs of neighbours; the share of them that increases by one


@rule(
    "constant-positions",
    "ROPE140",
    formerly=("positions-do-not-count",),
    explains=("rotary-not-relative", "packed-samples-leak"),
)
def constant_positions(positions: Positions) -> Iterator[Finding]:
    """Position ids constant, or not increasing from token to token.

    ## Why it matters
    Position ids give the order of the tokens. Where all are 0 (a tensor of zeros passed as `position_ids`, a
    cumulative sum of the wrong mask, a collator that pads with zeros) a model infers order only from the
    causal mask: the loss falls, and stays far above what is possible ([LLaMA-Factory
    10783](https://github.com/hiyouga/LlamaFactory/issues/10783) is one of the causes).

    ## Confidence and false positives
    The positions were read where they reach the model's rotary or learned table, or from the batch. Only
    neighbouring text tokens are compared, since the tokens of one image may share a position, and packed
    samples start again at 0 or 1. One position for a whole row is an error, and so are positions that never
    increase. Where some increase and most do not, it is a warning: a few methods shuffle them on purpose.

    ## What to do
    Leave `position_ids` out, so that the model computes them, or count the real tokens.
    """
    for place in positions.places:
        rows = [row for row in place.rows if row.pairs >= FEWEST]
        constant = [row for row in rows if row.lowest == row.highest]
        wild = [row for row in rows if row not in constant and row.rising + row.restarts < MOST * row.pairs]
        if constant:
            yield _finding(place, positions, constant, len(rows))
        elif wild:
            yield _finding(place, positions, wild, len(rows))
        else:
            continue
        return


def _finding(place: Place, positions: Positions, chosen: list[Counted], rows: int) -> Finding:
    same = all(row.lowest == row.highest for row in chosen)
    row = chosen[0]
    what = (
        f"all {row.tokens} tokens of row {row.row} have position {row.lowest}"
        if same
        else f"positions increase at {row.rising} of {row.pairs} pairs of neighbours in row {row.row}"
    )
    return Finding(
        f"position ids do not count the tokens: {what}",
        Severity.WARNING if any(row.rising for row in chosen) else Severity.ERROR,
        at=(positions.given or "position_ids", *([] if place.module == positions.given else [place.module])),
        measured={
            "rows": len(chosen),
            "of": rows,
            "from": row.lowest,
            "to": row.highest,
            "pairs": row.pairs,
            "rising": row.rising,
        },
        threshold={"rising": row.pairs},
        cause=f"the batch gives them as {positions.given}"
        if positions.given
        else "the batch gives none, and the model makes these itself",
        fix=Fix(
            "leave them out, or count the real tokens",
            ("position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)",),
        ),
    )


def _sample(*rows: Counted, given: str | None = "position_ids") -> Positions:
    return Positions(given=given, places=(Place(module=given or "rotary_emb", axes=1, rows=rows),), limit=64)


@constant_positions.bad
def all_zero() -> Positions:
    return _sample(
        Counted(row=0, tokens=13, first=0, lowest=0, highest=0, pairs=12, rising=0, falling=0, restarts=0),
        Counted(row=1, tokens=13, first=0, lowest=0, highest=0, pairs=12, rising=0, falling=0, restarts=0),
    )


@constant_positions.bad
def backwards() -> Positions:
    return _sample(
        Counted(row=0, tokens=13, first=12, lowest=0, highest=12, pairs=12, rising=0, falling=11, restarts=1)
    )


@constant_positions.good
def counting() -> Positions:
    return _sample(
        Counted(row=0, tokens=13, first=0, lowest=0, highest=12, pairs=12, rising=12, falling=0, restarts=0)
    )


@constant_positions.good
def packed() -> Positions:
    """Three samples in one row, each counted from 0."""
    return _sample(
        Counted(row=0, tokens=13, first=0, lowest=0, highest=4, pairs=12, rising=10, falling=0, restarts=2)
    )
