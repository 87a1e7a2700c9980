"""Where the model's tensors are, and which of them are nowhere: on the meta device, without a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.placement import Placement
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.subject import Subject


def probe(subject: Subject, gather: Callable[[type], Any]) -> Placement:
    """Reads the tensors' devices only."""

    if not isinstance(subject.model, nn.Module):
        raise Unavailable("no built model was given")
    parameters = list(subject.model.named_parameters())
    return Placement(
        parameters=len(parameters),
        meta_parameters=tuple(canonical_name(name) for name, p in parameters if p.is_meta),
        meta_buffers=tuple(canonical_name(name) for name, b in subject.model.named_buffers() if b.is_meta),
        hooked=any(hasattr(module, "_hf_hook") for module in subject.model.modules()),
    )
