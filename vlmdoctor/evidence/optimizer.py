"""The settings of the optimizer's groups, its state from earlier steps, and the scheduler of its rates."""

from __future__ import annotations

from dataclasses import dataclass

from vlmdoctor.errors import Unavailable

DEPTH = "static"
PROBE = "vlmdoctor.probes.optimizer.optimizer"


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
class OptimizerState:
    """What torch's optimizers have kept of the steps that they took, as after a run is resumed.

    Attributes:
        tensors: How many parameters have a state.
        misfits: (parameter, its shape, the shape of what is kept for it) where the two differ.
        steps: How many steps it says were taken, at most.
        lr: The learning rate of the first group.
        initial_lr: What the scheduler scales; None without one.
        scheduler: The scheduler's class; None without one.
        last_epoch: How often it was stepped; None where it does not say.
    """

    tensors: int
    misfits: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    steps: int = 0
    lr: float | None = None
    initial_lr: float | None = None
    scheduler: str | None = None
    last_epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizers that were given.

    Attributes:
        groups: The groups of all optimizers.
        scheduler: The scheduler's class; None where there is no scheduler of one optimizer.
        scheduler_foreign: Whether the scheduler was made for an optimizer that is none of those given.
        state: What they have kept of earlier steps; None where no step was taken.
    """

    groups: tuple[Group, ...] = ()
    scheduler: str | None = None
    scheduler_foreign: bool = False
    state: OptimizerState | None = None

    def needing_state(self) -> OptimizerState:
        """The state; raises `Unavailable` where there is none."""
        if self.state is None:
            raise Unavailable("the optimizer has taken no step yet")
        return self.state
