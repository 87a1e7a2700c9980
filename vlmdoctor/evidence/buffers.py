"""Tables that a model holds besides its weights, such as rotary frequencies, compared with fresh ones."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.positions.buffers"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A buffer with what is known of how it should be.

    Attributes:
        name: Canonical name.
        owner: The class of the module that holds it.
        dtype: Such as `float32`.
        problem: `not finite`, `all alike`, `not positive`, `too large` or `out of range`, if it is so.
        theta: The rotary base that the table was read to be made from; None where it is not known.
        config_theta: The one that the configuration gives, where there is exactly one and no scaling.
        rebuilt: Whether a freshly made copy could be had.
        rounded: Whether it is that copy, but for rounding to its dtype.
        error: The largest difference in a cosine up to `positions`; None without a copy.
        positions: How many positions were compared.
        first_wrong: The first position at which a cosine is off by more than 0.1; None where none is.
    """

    name: str
    owner: str
    dtype: str
    problem: str | None = None
    theta: float | None = None
    config_theta: float | None = None
    rebuilt: bool = False
    rounded: bool = False
    error: float | None = None
    positions: int = 0
    first_wrong: int | None = None


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """The tables that were recognised."""

    tables: tuple[Table, ...] = ()
