"""Which parameters there are, which are meant to learn, and which the optimizer holds."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.parameters"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter tensor; a tied one is listed once, under its first name.

    Attributes:
        name: Canonical name (wrappers stripped).
        role: `vision`, `projector`, `language`, `head` or `other`.
        layer: The repeated block that it sits in, such as `model.language_model.layers.3`, or "".
        depth: The number of that block within its stack, or None.
        shape: Its shape.
        dtype: Such as `float32`.
        requires_grad: Whether autograd makes a gradient for it.
        wanted: Whether it was declared as meant to learn; None where nothing was declared.
        in_optimizer: How often it stands in the optimizer's groups; None where there is no optimizer.
        lr: The learning rate of its group; None where it has none.
    """

    name: str
    role: str
    layer: str
    depth: int | None
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool
    wanted: bool | None = None
    in_optimizer: int | None = None
    lr: float | None = None

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All parameters of the model, in its own order.

    Attributes:
        parameters: One entry for each tensor.
        adapters: Whether low-rank or other adapters are attached, so that a frozen base is meant.
        vocab_size: Rows of the output head, None where unknown.
        foreign: How many tensors the optimizer holds that are not the model's.
        unmatched: Patterns of intended names that match no parameter.
    """

    parameters: tuple[Parameter, ...]
    adapters: bool = False
    vocab_size: int | None = None
    foreign: int = 0
    unmatched: tuple[str, ...] = ()

    def role(self, role: str) -> tuple[Parameter, ...]:
        """The parameters of one role."""
        return tuple(parameter for parameter in self.parameters if parameter.role == role)
