"""Hand-written families: each changes one kind of state when its model is run or its data is read."""

from benchmarks.hostile.families_state import (  # noqa: F401 (each registers its own)
    data,
    held,
    losses,
    numbers,
    process,
    training,
)
from benchmarks.hostile.families_state.tiny import FAMILIES

__all__ = ["FAMILIES"]
