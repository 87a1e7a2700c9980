"""Whether a training step fits the GPU that was named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEPTH = "shapes"
GIVEN = "no --gpu was named"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a step needs, and what the GPU has.

    Attributes:
        gpu: Its name.
        memory: Its bytes, without what is left to CUDA.
        needed: Bytes at the peak.
        needed_in: `forward`, `backward` or `optimizer step`.
        parts: Bytes of weights, gradients, optimizer state and activations.
        would_fit: Options under which it fits; None where none that was tried does.
    """

    gpu: str
    memory: int
    needed: int
    needed_in: str
    parts: Mapping[str, int] = field(default_factory=dict)
    would_fit: str | None = None
