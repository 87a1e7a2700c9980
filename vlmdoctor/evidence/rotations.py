"""How often queries and keys are rotated: the rotary tables are followed through one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.positions.rotations"


@dataclass(frozen=True, kw_only=True)
class Rotations:
    """What was seen.

    Attributes:
        rotated: How many products with a rotary table there were.
        twice: The modules in which something was rotated that had been rotated before.
    """

    rotated: int = 0
    twice: tuple[str, ...] = ()
