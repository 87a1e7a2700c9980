"""Which share of the values each dropout of the model throws away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "static"


@dataclass(frozen=True)
class Dropout:
    """The dropouts of a model.

    Attributes:
        modules: (canonical name, share of the values that it drops) of each dropout module.
    """

    modules: tuple[tuple[str, float], ...] = ()


def probe(subject: Subject, gather: Callable[[type], Any]) -> Dropout:
    """Reads them off the model's modules."""
    from torch.nn.modules.dropout import _DropoutNd

    from vlmdoctor.subject import canonical_name

    if subject.model is None:
        raise Unavailable("no model was given")
    found = [
        (canonical_name(f"{name}.").rstrip("."), float(module.p))
        for name, module in subject.model.named_modules()
        if isinstance(module, _DropoutNd)
    ]
    if not found:
        raise Unavailable("the model has no dropout modules")
    return Dropout(tuple(found))
