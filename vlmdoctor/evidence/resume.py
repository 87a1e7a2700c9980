"""Whether a run that is saved and loaded goes on as if it had not been: tried on copies."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "steps"
PROBE = "vlmdoctor.probes.checkpoint.resume"


@dataclass(frozen=True, kw_only=True)
class Resume:
    """One training step after loading the state dicts, beside the same step without.

    Attributes:
        parameters: How many learn.
        differing: Names of those that came out otherwise after loading.
        largest: The largest difference, relative to the parameter's step.
        lr, lr_loaded: The learning rate of that step, without and after loading.
        unsaved: Tensors of modules that differ, and that `state_dict` does not hold.
        optimizer_state, optimizer_state_loaded: How many parameters the optimizers have a state for.
        raised: What loading raised; None where it did not.
    """

    parameters: int
    differing: tuple[str, ...] = ()
    largest: float = 0.0
    lr: float | None = None
    lr_loaded: float | None = None
    unsaved: tuple[str, ...] = ()
    optimizer_state: int = 0
    optimizer_state_loaded: int = 0
    raised: str | None = None
