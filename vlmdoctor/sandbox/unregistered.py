"""Parameters that hang in a model without being registered: in lists, mappings and plain tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

DEEPEST = 3  # containers within containers that are searched
_REGISTERED = ("_parameters", "_modules", "_buffers")


def unregistered_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By where they hang, such as `decoder.extra[0].weight`; each once."""
    known = {id(parameter) for parameter in model.parameters()}
    found: dict[str, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in _REGISTERED:
                continue
            for path, parameter in _inside(value, f"{prefix}.{attribute}" if prefix else attribute, 0):
                if id(parameter) not in known:
                    known.add(id(parameter))
                    found[path] = parameter
    return found


def _inside(value: Any, path: str, depth: int) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(value, nn.Parameter):
        yield path, value
    elif isinstance(value, nn.Module):
        for name, parameter in value.named_parameters():
            yield f"{path}.{name}", parameter
    elif depth < DEEPEST and isinstance(value, list | tuple):
        if not value or isinstance(value[0], torch.Tensor | nn.Module | list | tuple | Mapping):
            for i, one in enumerate(value):
                yield from _inside(one, f"{path}[{i}]", depth + 1)
    elif depth < DEEPEST and isinstance(value, Mapping):
        for key, one in value.items():
            yield from _inside(one, f"{path}[{key!r}]", depth + 1)
