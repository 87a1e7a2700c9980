"""How often queries and keys are rotated: the rotary tables are followed through one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.forward import passed

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "forward"


@dataclass(frozen=True)
class Rotations:
    """What was seen.

    Attributes:
        rotated: How many products with a rotary table there were.
        twice: The modules in which something was rotated that had been rotated before.
    """

    rotated: int = 0
    twice: tuple[str, ...] = ()


def probe(subject: Subject, gather: Callable[[type], Any]) -> Rotations:
    """Runs the model once and leaves it as it was."""
    from vlmdoctor.evidence.rotations_followed import followed
    from vlmdoctor.watching.nonfinite import communicates

    passed(gather)
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    return followed(subject)
