"""Stacks of layers in which the same layer stands several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.repeated_layers import RepeatedLayers, Stack
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.subject import Subject


def probe(subject: Subject, gather: Callable[[type], Any]) -> RepeatedLayers:
    """Compares the entries by identity."""

    if not isinstance(subject.model, nn.Module):
        raise Unavailable("no built model was given")
    stacks = []
    for name, module in subject.model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            entries = [layer for layer in module if any(True for _ in layer.parameters())]
            if len(entries) > 1:
                different = len({id(layer) for layer in entries})
                stacks.append(
                    Stack(
                        name=canonical_name(name),
                        layer=type(entries[0]).__name__,
                        entries=len(entries),
                        different=different,
                    )
                )
    tied = getattr(subject.model, "_tied_weights_keys", None) or ()
    return RepeatedLayers(stacks=tuple(stacks), shares_by_design=any("layers" in str(key) for key in tied))
