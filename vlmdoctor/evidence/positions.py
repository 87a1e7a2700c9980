"""The positions that the text's tokens get, as they reach the rotary tables or the learned ones."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.positions.positions"


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How the positions of one row go on from token to token.

    Attributes:
        row: Which row of the batch.
        tokens: How many real tokens it has.
        first: The position of the first of them.
        lowest, highest: Over the real tokens.
        pairs: Pairs of neighbours that are both text, and not placeholders.
        rising: Of these, those where the second has a higher position.
        falling: Those where it has a lower one and counting does not begin anew (at 0 or 1).
        restarts: Those where counting begins anew.
    """

    row: int
    tokens: int
    first: int
    lowest: int
    highest: int
    pairs: int
    rising: int
    falling: int
    restarts: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """Positions where they were seen.

    Attributes:
        module: The module that was given them, by its canonical name.
        axes: 1, or more where images have a height and a width.
        rows: How they count, row by row; of several axes, the first.
    """

    module: str
    axes: int
    rows: tuple[Counted, ...]


@dataclass(frozen=True, kw_only=True)
class ExpectedPositions:
    """The positions that the model makes itself of this batch, compared with those that it used.

    Attributes:
        function: The function that makes them.
        axes: How many axes they have.
        rows: How many rows were compared.
        differing_rows: In how many of them any token's position is another.
        differing: How many tokens of those.
        tokens: How many tokens were compared.
        flat: Whether what was used is the same along all axes, where the model's own are not.
        permuted: Whether what was used are the model's own with their axes in another order.
        example: (row, token, its own positions, the positions used) of the first that differs.
    """

    function: str
    axes: int
    rows: int
    differing_rows: int
    differing: int
    tokens: int
    flat: bool
    permuted: bool
    example: tuple[int, int, tuple[int, ...], tuple[int, ...]] | None = None


@dataclass(frozen=True, kw_only=True)
class Positions:
    """What was seen of positions in one forward pass.

    Attributes:
        given: The name of the batch's positions; None where the batch has none.
        places: Where they were seen: the modules that take them, else the batch itself.
        limit: The highest number of positions that the model has; None where unknown.
        expected: The comparison with the model's own; None where it makes none: see `no_expected`.
        no_expected: Why there is no comparison.
    """

    given: str | None = None
    places: tuple[Place, ...] = ()
    limit: int | None = None
    expected: ExpectedPositions | None = None
    no_expected: str | None = None
