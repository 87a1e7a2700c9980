"""One forward and backward pass on the user's batch: which parameters a gradient reaches."""

from __future__ import annotations

from dataclasses import dataclass

from vlmdoctor.evidence.failure import Failure

DEPTH = "backward"
PROBE = "vlmdoctor.probes.gradient.backward"


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The gradient of one parameter tensor that has requires_grad.

    Attributes:
        name: Canonical name, as in `Parameter.name`.
        role: `vision`, `projector`, `language`, `head` or `other`.
        present: Whether backward made one.
        zero: Whether it is exactly zero; None without one.
        finite: Whether it is free of NaN and infinity; None without one.
        norm: Its norm in float32; None without one, and where it is not finite.
        zeroed: Whether it is exactly zero because of the parameter's hooks: without them it is not.
    """

    name: str
    role: str
    present: bool
    zero: bool | None = None
    finite: bool | None = None
    norm: float | None = None
    zeroed: bool = False


@dataclass(frozen=True, kw_only=True)
class Backward:
    """What one backward pass gave.

    Attributes:
        loss: The loss that it started from.
        gradients: One entry for each parameter that has requires_grad.
        trainable: How many of the model's parameter tensors have requires_grad.
        parameters: How many parameter tensors there are.
        failure: What backward raised.
        images: How many images the batch holds; None where that is not known.
    """

    loss: float
    gradients: tuple[Gradient, ...]
    trainable: int
    parameters: int
    failure: Failure | None = None
    images: int | None = None
