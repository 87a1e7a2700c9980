"""Which share of the values each dropout of the model throws away."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "static"
_SHARE = re.compile(
    r"((attention|attn|hidden|resid|residual|embd|activation|ffn)_?)?(dropout|pdrop)(_p|_prob)?"
)


@dataclass(frozen=True)
class Dropout:
    """The dropouts of a model.

    Attributes:
        modules: (canonical name, share of the values that it drops) of each dropout module, and of each
            number of a module that is named as such a share, as attention layers have it.
    """

    modules: tuple[tuple[str, float], ...] = ()


def probe(subject: Subject, gather: Callable[[type], Any]) -> Dropout:
    """Reads them off the model's modules."""
    from torch import nn

    from vlmdoctor.subject import canonical_name

    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

    if subject.model is None:
        raise Unavailable("no model was given")
    found = []
    for raw_name, module in subject.model.named_modules():
        name = canonical_name(f"{raw_name}.").rstrip(".")
        if isinstance(module, kinds):
            found.append((name, float(module.p)))
        for attribute, value in vars(module).items():
            if isinstance(value, float) and _SHARE.fullmatch(attribute):
                found.append((f"{name}.{attribute}".lstrip("."), value))
    if not found:
        raise Unavailable("the model has no dropout")
    return Dropout(tuple(found))
