"""One walk through the modules: modes, dropouts, repeated layers, and tensors without values."""

from __future__ import annotations

from dataclasses import dataclass

from vlmdoctor.errors import Unavailable

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.module_tree"


@dataclass(frozen=True, kw_only=True)
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
class ModuleTree:
    """The model's modules and where its tensors are.

    Attributes:
        training: Whether the model as a whole is in training mode and learns.
        batch_norms: The batch normalisations that keep running statistics.
        dropouts: (canonical name, share of the values that it drops) of each dropout module, and of each
            number of a module that is named as such a share, as attention layers have it.
        stacks: The lists of two and more layers with parameters.
        shares_by_design: Whether the model declares that some of its layers share weights.
        parameters: How many parameter tensors there are.
        meta_parameters: Names of those on the meta device, which have no values.
        meta_buffers: Names of the buffers there.
        hooked: Whether modules fetch their weights when they are called, as accelerate's do.
        dry_run: Whether it is the model of a dry run, in which weights are not made.
    """

    training: bool = False
    batch_norms: tuple[RunningNorm, ...] = ()
    dropouts: tuple[tuple[str, float], ...] = ()
    stacks: tuple[Stack, ...] = ()
    shares_by_design: bool = False
    parameters: int = 0
    meta_parameters: tuple[str, ...] = ()
    meta_buffers: tuple[str, ...] = ()
    hooked: bool = False
    dry_run: bool = False

    def needing_dropouts(self) -> tuple[tuple[str, float], ...]:
        """The dropouts; raises `Unavailable` where there are none."""
        if not self.dropouts:
            raise Unavailable("the model has no dropout")
        return self.dropouts
