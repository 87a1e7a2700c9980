"""Stacks of layers in which the same layer stands several times."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.repeated_layers"


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class RepeatedLayers:
    """The model's stacks of layers with parameters.

    Attributes:
        stacks: Those of two and more entries.
        shares_by_design: Whether the model declares that some of its layers share weights.
    """

    stacks: tuple[Stack, ...] = ()
    shares_by_design: bool = False
