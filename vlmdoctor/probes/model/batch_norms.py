"""The normalisations whose running statistics follow whatever batches come through in training mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "static"


@dataclass(frozen=True)
class RunningNorm:
    """One batch normalisation that keeps running statistics.

    Attributes:
        name: Canonical name.
        module_class: Its class.
        role: `vision`, `projector`, `language`, `head` or `other`.
        training: Whether it is in training mode, so that a forward pass changes its statistics.
        frozen: Whether it has weights, and neither they nor what is around it require a gradient: a norm may
            be frozen alone, beside layers that learn.
    """

    name: str
    module_class: str
    role: str
    training: bool
    frozen: bool


@dataclass(frozen=True)
class BatchNorms:
    """The model's batch normalisations.

    Attributes:
        training: Whether the model as a whole is in training mode and learns: theirs are as they will be.
        norms: Those that keep running statistics.
    """

    training: bool
    norms: tuple[RunningNorm, ...] = ()


def probe(subject: Subject, gather: Callable[[type], Any]) -> BatchNorms:
    """Reads modes and flags only."""
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    from vlmdoctor.subject import canonical_name, role_of

    if not isinstance(subject.model, nn.Module):
        raise Unavailable("no built model was given")
    norms = []
    modules = dict(subject.model.named_modules())
    for raw_name, module in modules.items():
        if not isinstance(module, _BatchNorm) or module.running_mean is None or module.momentum == 0:
            continue
        name = canonical_name(f"{raw_name}.").rstrip(".")
        around = modules[raw_name.rpartition(".")[0]].parameters()
        frozen = any(True for _ in module.parameters()) and not any(p.requires_grad for p in around)
        norms.append(RunningNorm(name, type(module).__name__, role_of(name), module.training, frozen))
    learns = any(p.requires_grad for p in subject.model.parameters())
    return BatchNorms(subject.model.training and learns, tuple(norms))
