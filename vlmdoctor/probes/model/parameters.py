"""Which parameters there are, which are meant to learn, and which the optimizer holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "static"


@dataclass(frozen=True)
class Parameter:
    """One parameter tensor; a tied one is listed once, under its first name.

    Attributes:
        name: Canonical name (wrappers stripped).
        role: `vision`, `projector`, `language`, `head` or `other`.
        layer: The repeated block that it sits in, such as `model.language_model.layers.3`, or "".
        depth: The number of that block within its stack, or None.
        shape: Its shape.
        dtype: Such as `float32`.
        requires_grad: Whether autograd is told to make a gradient for it.
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


@dataclass(frozen=True)
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


def probe(subject: Subject, gather: Callable[[type], object]) -> Parameters:
    """Lists the parameters of `subject.model`; reads names, shapes and flags only."""
    from vlmdoctor import contract as contracts
    from vlmdoctor import subject as subjects

    model = getattr(subject, "model", None)
    if model is None:
        raise Unavailable("no model was given")
    optimizers = subjects.optimizers(subject.optimizer)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held: dict[int, int] = {}
    rates: dict[int, float] = {}
    for group in groups:
        for tensor in group["params"]:
            held[id(tensor)] = held.get(id(tensor), 0) + 1
            if group.get("lr") is not None:  # Adafactor may choose it itself
                rates[id(tensor)] = float(group["lr"])
    patterns = None if subject.trainable is None else subjects.compile_patterns(subject.trainable)

    # A tied parameter counts as declared under any of its names: `lm_head` is no stale pattern then.
    all_names: dict[int, list[str]] = {}
    for raw_name, tensor in model.named_parameters(remove_duplicate=False):
        all_names.setdefault(id(tensor), []).append(subjects.canonical_name(raw_name))

    found, own = [], set()
    matched: set[str] = set()
    for raw_name, tensor in model.named_parameters():
        own.add(id(tensor))
        name = subjects.canonical_name(raw_name)
        layer, depth = subjects.layer_of(name)
        wanted = None
        if patterns is not None:
            names = all_names[id(tensor)]
            hits = [text for text, pattern in patterns.items() if any(map(pattern.search, names))]
            matched.update(hits)
            wanted = bool(hits)
        found.append(
            Parameter(
                name=name,
                role=subjects.role_of(name),
                layer=layer,
                depth=depth,
                # A lazy one has none yet.
                shape=() if hasattr(tensor, "materialize") else tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                requires_grad=tensor.requires_grad,
                wanted=wanted,
                in_optimizer=held.get(id(tensor), 0) if optimizers else None,
                lr=rates.get(id(tensor)),
            )
        )
    if patterns is None and getattr(subject, "contract", None):
        found = contracts.declared(found, subject.contract)
    return Parameters(
        parameters=tuple(found),
        adapters=any(".lora_" in p.name or "lora_embedding" in p.name for p in found),
        vocab_size=subjects.vocab_size(model),
        foreign=sum(1 for identity in held if identity not in own),
        unmatched=tuple(text for text in patterns or () if text not in matched),
    )
