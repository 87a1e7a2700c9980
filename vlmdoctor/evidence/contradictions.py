"""Values of a configuration that can't go together, proven by the change under which the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEPTH = "shapes"
GIVEN = "no config.json was changed and tried"


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """One of them.

    Attributes:
        message: The contradiction in one line, with the paths of the fields.
        fields: Path -> value of what disagrees.
        change: Path -> value under which the step ran.
        failed: What the model did without the change, such as `raises ValueError: …`.
        built: Whether the model could be built at all without the change.
    """

    message: str
    fields: Mapping[str, Any]
    change: Mapping[str, Any]
    failed: str
    built: bool = True


@dataclass(frozen=True, kw_only=True)
class Contradictions:
    """What was found; empty where the model runs."""

    found: tuple[Contradiction, ...] = ()
