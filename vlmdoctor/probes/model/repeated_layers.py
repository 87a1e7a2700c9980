"""Stacks of layers in which the same layer stands several times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "static"


@dataclass(frozen=True)
class Stack:
    """A list of layers.

    Attributes:
        name: Canonical name of the list.
        layer: The class of its entries.
        entries: How many there are.
        different: How many different modules they are.
    """

    name: str
    layer: str
    entries: int
    different: int


@dataclass(frozen=True)
class RepeatedLayers:
    """The model's stacks of layers with parameters.

    Attributes:
        stacks: Those of two and more entries.
        shares_by_design: Whether the model declares that some of its layers share weights.
    """

    stacks: tuple[Stack, ...] = ()
    shares_by_design: bool = False


def probe(subject: Subject, gather: Callable[[type], Any]) -> RepeatedLayers:
    """Compares the entries by identity."""
    from torch import nn

    from vlmdoctor.subject import canonical_name

    if not isinstance(subject.model, nn.Module):
        raise Unavailable("no built model was given")
    stacks = []
    for name, module in subject.model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            entries = [layer for layer in module if any(True for _ in layer.parameters())]
            if len(entries) > 1:
                different = len({id(layer) for layer in entries})
                stacks.append(Stack(canonical_name(name), type(entries[0]).__name__, len(entries), different))
    tied = getattr(subject.model, "_tied_weights_keys", None) or ()
    return RepeatedLayers(tuple(stacks), any("layers" in str(key) for key in tied))
