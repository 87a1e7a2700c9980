"""Whether the weights that a forward pass uses are those that training moves.

One pass is run; its graph is followed from the loss to the leaves, and the weights are looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "backward"
PROBE = "vlmdoctor.probes.gradient.weights_in_use"


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A trainable parameter that the loss depends on and that is none of `model.parameters()`.

    Attributes:
        name: Where it hangs in the model, such as `decoder.extra[0].weight`; None where it was not found.
        shape: Its shape.
        anew: Whether each forward pass makes another one.
        in_optimizer: Whether an optimizer holds it.
    """

    name: str | None
    shape: tuple[int, ...]
    anew: bool
    in_optimizer: bool


@dataclass(frozen=True, kw_only=True)
class WeightsInUse:
    """What was found.

    Attributes:
        strangers: Parameters that are used and not registered.
        overwritten: Trainable parameters whose values the forward pass replaces, whatever they were before.
        optimizer_given: Whether there was an optimizer.
    """

    strangers: tuple[Stranger, ...] = ()
    overwritten: tuple[str, ...] = ()
    optimizer_given: bool = False
