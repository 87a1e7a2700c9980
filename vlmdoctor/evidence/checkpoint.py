"""A checkpoint compared with the model: which weights it has, their names, and whether they were loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vlmdoctor.knowledge.parameter_names import role_of

DEPTH = "static"
PROBE = "vlmdoctor.probes.checkpoint.checkpoint"


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter of the model beside the checkpoint's tensor for it.

    Attributes:
        name: Canonical name, as in `Parameter.name`.
        role: `vision`, `projector`, `language`, `head` or `other`.
        shape: The parameter's shape.
        key: The tensor's name in the checkpoint; None where it has none for this parameter.
        key_shape: That tensor's shape.
        renamed: (what the key begins with, what the parameter's name begins with), where the names differ
            by that, so that `load_state_dict` does not bring them together.
        by_loader: Whether `from_pretrained` renames it so by itself.
        equal: Whether the compared values are the same, up to the rounding of the coarser data type; None
            where they were not compared.
        agreement: Correlation of the compared values; None where they were not compared, are few or constant.
        distance: Norm of their difference over the norm of the checkpoint's; None likewise.
        fresh: Whether the parameter's values look like those of a new module; None where not looked at.
        alike: A tensor of the checkpoint whose name ends alike, where it is not known whether it is meant.
        adapter: Whether it belongs to an adapter.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    key: str | None = None
    key_shape: tuple[int, ...] | None = None
    renamed: tuple[str, str] | None = None
    by_loader: bool = False
    equal: bool | None = None
    agreement: float | None = None
    distance: float | None = None
    fresh: bool | None = None
    adapter: bool = False
    alike: str | None = None

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def state(self) -> str:
        """One of `STATES`."""
        if self.key is None:
            return "missing"
        return {True: "loaded", False: "not_loaded", None: "unknown"}[self.loaded]

    @property
    def loaded(self) -> bool | None:
        """Whether its values are the checkpoint's, or at least descend from them; None where unknown."""
        if self.key is None:
            return False
        if self.equal or (self.agreement is not None and self.agreement >= RELATED):
            return True
        # Norms near 1 are close to each other without being related.
        unrelated = self.agreement is not None and self.distance is not None and self.distance >= FAR
        return False if unrelated else None


STATES = ("loaded", "not_loaded", "missing", "unknown")
SAME_PART = 0.8  # of a part's numbers: fewer that differ only by a prefix may belong to another network
RELATED = 0.5  # correlation: fine-tuning leaves it above 0.9, random values have none
FAR = 0.5  # relative distance: of unrelated values it is about 1.4


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the checkpoint holds for the model.

    Attributes:
        shown: The path, or what else was given.
        tensors: How many tensors it holds.
        weights: One entry for each parameter of the model, in its order.
        unplaced: Key -> shape of the tensors that belong to no parameter or buffer.
        adapter_only: Whether it holds nothing but adapters (and modules saved with them).
        laid_out: Whether the model has no values yet, so that what the checkpoint lacks will be drawn.
    """

    shown: str
    tensors: int
    weights: tuple[Weight, ...]
    unplaced: Mapping[str, tuple[int, ...]]
    adapter_only: bool = False
    laid_out: bool = False

    def counts(self) -> dict[str, int]:
        """State -> number of the model's parameters; together, all that the checkpoint could hold."""
        return {state: sum(weight.state == state for weight in self.weights) for state in STATES}


def is_resized(name: str, shape: tuple[int, ...], key_shape: tuple[int, ...]) -> bool:
    """Whether the two are a table of tokens with more or fewer rows."""
    table = role_of(name) == "head" or re.search(r"embed|wte|shared|tok", name) is not None
    return table and len(shape) == len(key_shape) and shape[1:] == key_shape[1:] and "pos" not in name
