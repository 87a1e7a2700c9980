"""Where the model's tensors are, and which of them are nowhere: on the meta device, without a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "static"


@dataclass(frozen=True)
class Placement:
    """The tensors without a value beside those with one.

    Attributes:
        parameters: How many parameter tensors there are.
        meta_parameters: Names of those on the meta device.
        meta_buffers: Names of the buffers there.
        hooked: Whether modules fetch their weights when they are called, as accelerate's do.
        dry_run: Whether it is the model of a dry run, in which weights are not made.
    """

    parameters: int
    meta_parameters: tuple[str, ...] = ()
    meta_buffers: tuple[str, ...] = ()
    hooked: bool = False
    dry_run: bool = False


def probe(subject: Subject, gather: Callable[[type], Any]) -> Placement:
    """Reads the tensors' devices only."""
    from torch import nn

    from vlmdoctor.subject import canonical_name

    if not isinstance(subject.model, nn.Module):
        raise Unavailable("no built model was given")
    parameters = list(subject.model.named_parameters())
    return Placement(
        parameters=len(parameters),
        meta_parameters=tuple(canonical_name(name) for name, p in parameters if p.is_meta),
        meta_buffers=tuple(canonical_name(name) for name, b in subject.model.named_buffers() if b.is_meta),
        hooked=any(hasattr(module, "_hf_hook") for module in subject.model.modules()),
    )
