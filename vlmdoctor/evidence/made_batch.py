"""That the batch is not the user's, but was made for a model that came without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "static"


@dataclass(frozen=True)
class MadeBatch:
    """Handed in by whoever made the batch: parts of the model that it leaves out may be used by real ones.

    Attributes:
        how: What it was made from.
    """

    how: str


def probe(subject: Subject, gather: Callable[[type], Any]) -> MadeBatch:
    """There is none unless it was handed in."""
    raise Unavailable("the batch is the user's own")
