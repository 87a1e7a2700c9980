"""positions-beyond-the-table: tokens have positions beyond max_position_embeddings."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.positions import Counted, Place, Positions
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("positions-beyond-the-table", "ROPE142")
def positions_beyond_the_table(positions: Positions) -> Iterator[Finding]:
    """Position ids exceed `max_position_embeddings`, although no row has so many tokens.

    ## Why it matters
    Rotary tables are computed for any number, so nothing raises, and a model gets positions that were not in
    its training: the further out the positions, the worse the text. It happens where counting continues
    through all samples of a packed row or of a batch, or where positions are counted in other units.

    ## Confidence and false positives
    The highest position of a real token was read where it reaches the model's table. Rows that are too long
    have a rule of their own. It is a warning, since the configuration may be older than the rotary scaling
    that is used.

    ## What to do
    Start again at 0 for each sample: leave `position_ids` out, or count the real tokens of each.
    """
    limit = positions.limit
    if not limit:
        return
    for place in positions.places:
        beyond = [row for row in place.rows if row.highest >= limit and row.tokens <= limit]
        # Constant positions have a rule of their own.
        beyond = [row for row in beyond if row.lowest < row.highest or row.tokens == 1]
        if not beyond:
            continue
        row = max(beyond, key=lambda row: row.highest)
        yield Finding(
            f"position ids reach {row.highest:,} in a row of {row.tokens:,} tokens; max_position_embeddings "
            f"is {limit:,}",
            Severity.WARNING,
            at=(
                positions.given or "position_ids",
                *([] if place.module == positions.given else [place.module]),
                f"row {row.row}",
            ),
            measured={"highest": row.highest, "first": row.first, "tokens": row.tokens, "rows": len(beyond)},
            threshold={"highest": limit - 1},
            cause=f"they start at {row.first:,}"
            if row.first
            else "they increase faster than the tokens, or count through several samples",
            fix=Fix(
                "count the tokens of each sample from 0",
                ("position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)",),
            ),
        )
        return


def _sample(first: int, highest: int) -> Positions:
    row = Counted(
        row=0,
        tokens=13,
        first=first,
        lowest=first,
        highest=highest,
        pairs=12,
        rising=12,
        falling=0,
        restarts=0,
    )
    return Positions(
        given="position_ids", places=(Place(module="position_ids", axes=1, rows=(row,)),), limit=64
    )


@positions_beyond_the_table.bad
def counted_through_the_batch() -> Positions:
    return _sample(104, 116)


@positions_beyond_the_table.good
def counted_from_zero() -> Positions:
    return _sample(0, 12)
