"""Which share of the values each dropout of the model throws away."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.dropout import Dropout
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.subject import Subject

_SHARE = re.compile(
    r"((attention|attn|hidden|resid|residual|embd|activation|ffn)_?)?(dropout|pdrop)(_p|_prob)?"
)


def probe(subject: Subject, gather: Callable[[type], Any]) -> Dropout:
    """Reads them off the model's modules."""

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
    return Dropout(modules=tuple(found))
