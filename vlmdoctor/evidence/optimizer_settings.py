"""What the optimizer's groups are set to, and whether the scheduler sets the rates of this optimizer."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.optimizer.settings"


@dataclass(frozen=True, kw_only=True)
class Group:
    """One parameter group.

    Attributes:
        optimizer: The optimizer's class.
        lr, weight_decay, eps: As it stands in the group; None where it has none, or chooses it itself.
        maximize: Whether the optimizer climbs.
        tensors: How many tensors it holds.
        first: Canonical name of the first of the model's parameters in it; None where there is none.
    """

    optimizer: str
    lr: float | None = None
    weight_decay: float | None = None
    eps: float | None = None
    maximize: bool = False
    tensors: int = 0
    first: str | None = None


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """What was given.

    Attributes:
        groups: The groups of all optimizers.
        scheduler: The scheduler's class; None where there is no scheduler of one optimizer.
        scheduler_foreign: Whether the scheduler was made for an optimizer that is none of those given.
    """

    groups: tuple[Group, ...]
    scheduler: str | None = None
    scheduler_foreign: bool = False
