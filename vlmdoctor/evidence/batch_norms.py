"""The normalisations whose running statistics follow whatever batches come through in training mode."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.batch_norms"


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
class BatchNorms:
    """The model's batch normalisations.

    Attributes:
        training: Whether the model as a whole is in training mode and learns: theirs are as they will be.
        norms: Those that keep running statistics.
    """

    training: bool
    norms: tuple[RunningNorm, ...] = ()
