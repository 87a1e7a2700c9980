"""How often queries and keys are rotated: the rotary tables are followed through one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmdoctor.evidence.forward import passed

if TYPE_CHECKING:
    from vlmdoctor.engine import Gatherer
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


def probe(subject: Subject, gather: Gatherer) -> Rotations:
    """Follows rotary tables through the one pass."""
    from vlmdoctor.evidence.one_pass import observed

    passed(gather)
    return observed(gather, "vlmdoctor.evidence.rotations_followed")
