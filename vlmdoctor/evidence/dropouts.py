"""How much each dropout drops while training."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "static"
_RATE = re.compile(
    r"((attention|attn|hidden|activation|resid|residual|embd|embed|ff|mlp)_?)?(p?dropout|pdrop)(_p|_rate|_prob)?"
)


@dataclass(frozen=True)
class Dropout:
    """One place that drops.

    Attributes:
        name: The module, or module and attribute, under its canonical name.
        rate: The share that is dropped.
        trains: Whether the model has anything to train.
    """

    name: str
    rate: float
    trains: bool = True


@dataclass(frozen=True)
class Dropouts:
    """Every dropout whose rate is not 0."""

    places: tuple[Dropout, ...] = ()


def probe(subject: Subject, gather: Callable[[type], Any]) -> Dropouts:
    """Reads the rates off modules and their attributes; runs nothing."""
    from torch.nn.modules.dropout import _DropoutNd

    from vlmdoctor.subject import canonical_name

    if subject.model is None:
        raise Unavailable("no model was given")
    trains = any(parameter.requires_grad for parameter in subject.model.parameters())
    found = []
    for name, module in subject.model.named_modules():
        if isinstance(module, _DropoutNd):
            rates = {"": module.p}
        else:
            rates = {key: value for key, value in vars(module).items() if _RATE.fullmatch(key)}
        for key, rate in rates.items():
            if isinstance(rate, float) and 0 < rate <= 1:
                place = canonical_name(".".join(filter(None, (name, key))))
                found.append(Dropout(place, rate, trains))
    return Dropouts(tuple(found))
