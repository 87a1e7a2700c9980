"""Batch norms: whether their statistics move although their weights are frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "static"


@dataclass(frozen=True)
class Norms:
    """The norms of a model that keep statistics of what they have seen.

    Attributes:
        moving: Names of those whose statistics are updated in training.
        frozen: Names of those among them whose weights, and all beside them, are frozen.
    """

    moving: tuple[str, ...]
    frozen: tuple[str, ...]


def probe(subject: Subject, gather: Callable[[type], Any]) -> Norms:
    """Reads modes and flags; runs nothing."""
    from torch.nn.modules.batchnorm import _BatchNorm

    from vlmdoctor.subject import canonical_name

    model = subject.model
    if model is None:
        raise Unavailable("no model was given")
    if not model.training or not any(p.requires_grad for p in model.parameters()):
        raise Unavailable("the model is not in training mode, or nothing in it learns")
    modules = dict(model.named_modules())
    moving = [
        name
        for name, module in modules.items()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    ]
    frozen = [
        name
        for name in moving
        if any(True for _ in modules[name].parameters())
        # The part around it: a norm may be frozen alone, beside layers that learn.
        and not any(p.requires_grad for p in modules[name.rpartition(".")[0]].parameters())
    ]
    return Norms(tuple(map(canonical_name, moving)), tuple(map(canonical_name, frozen)))
