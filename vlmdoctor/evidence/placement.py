"""Where the model's tensors are, and which of them are nowhere: on the meta device, without a value."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.placement"


@dataclass(frozen=True, kw_only=True)
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
