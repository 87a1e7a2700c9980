"""A rotary table and a query that it does not fit, as plain facts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TableRepair:
    """The tables rebuilt in memory and the forward pass run again.

    Attributes:
        head_dim: What they were rebuilt from.
        theta: The base that was read off the tables themselves.
        tables: Names of the rebuilt tensors.
        loss: The loss that the repaired model gave; None where it gave none.
        error: What it raised, if it still raised.
    """

    head_dim: int
    theta: float
    tables: tuple[str, ...]
    loss: float | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """A rotary table that did not fit.

    Attributes:
        table: Name of the table's variable where it was applied.
        table_width: Its columns, as a full table has them (a table of half the angles counts twice).
        query: Name of the query's or key's variable there.
        query_width: The size of one head there, as the table should have had it.
        head_dim, num_heads, hidden_size: As the modules around it or their configuration say, else None.
        applied_file, applied_line, applied_in: Where the two met.
        module: The attention module, canonical name.
        stored_as: Names of the model's tensors that hold the table; empty where it is made on the fly.
        built_file, built_line, built_code: The line that made it; None where it is not known.
        repair: The repair that was tried; None where none could be.
    """

    table: str
    table_width: int
    query: str
    query_width: int
    head_dim: int | None
    num_heads: int | None
    hidden_size: int | None
    applied_file: str
    applied_line: int
    applied_in: str
    module: str | None
    stored_as: tuple[str, ...] = ()
    built_file: str | None = None
    built_line: int | None = None
    built_code: str | None = None
    repair: TableRepair | None = None
