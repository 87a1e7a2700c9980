"""That the batch is not the user's, but was made for a model that came without one."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
GIVEN = "the batch is the user's own"


@dataclass(frozen=True, kw_only=True)
class MadeBatch:
    """Handed in by whoever made the batch: parts of the model that it leaves out may be used by real ones.

    Attributes:
        how: What it was made from.
    """

    how: str
