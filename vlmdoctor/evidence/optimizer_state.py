"""What an optimizer has kept of steps that it took before: of resumed runs, whether it fits the model."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.optimizer.state"


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """The state of all optimizers.

    Attributes:
        tensors: How many parameters have one.
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
