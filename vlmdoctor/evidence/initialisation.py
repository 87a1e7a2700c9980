"""Which frozen weights are still exactly as a fresh initialisation leaves them."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.initialisation"


@dataclass(frozen=True, kw_only=True)
class FrozenWeights:
    """The frozen tensors of one role.

    Attributes:
        role: `vision`, `projector` or `language`.
        names: Canonical names of those that were judged.
        learning: How many tensors of the role have requires_grad.
        uniform: How many matrices fill the interval of the default initialisation evenly, to its very ends.
        unclear: How many matrices say nothing by themselves, such as those with normally distributed values.
        unit_norms: How many norms have weights of exactly one and biases of exactly zero.
        zero_biases: How many other biases are exactly zero.
        trained: How many tensors no initialisation leaves so.
        numbers: How many numbers were judged.
    """

    role: str
    names: tuple[str, ...] = ()
    learning: int = 0
    uniform: int = 0
    unclear: int = 0
    unit_norms: int = 0
    zero_biases: int = 0
    trained: int = 0
    numbers: int = 0

    @property
    def fresh(self) -> bool:
        """Whether nothing of it can have been trained."""
        if self.trained:
            return False
        if self.uniform and not self.unclear:
            return True
        # Training moves norms and biases first: no trained tower has all of them at exactly one and zero.
        return self.unit_norms >= 2 and self.zero_biases >= 2


@dataclass(frozen=True, kw_only=True)
class Initialisation:
    """The frozen weights of a model, by role.

    Attributes:
        parts: One entry for each role that has any.
    """

    parts: tuple[FrozenWeights, ...]
