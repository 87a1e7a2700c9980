"""Whether numbers are finite: in weights, in a batch, in an output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.watching.measure import local


def nonfinite_weights(model: nn.Module) -> tuple[str, ...]:
    """Canonical names of the parameters that hold NaN or infinity."""
    return tuple(
        canonical_name(name)
        for name, parameter in model.named_parameters()
        if not nn.parameter.is_lazy(parameter)
        and parameter.is_floating_point()
        and not bool(torch.isfinite(local(parameter.detach())).all())
    )


def nonfinite_inputs(args: Any, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of the model's inputs hold NaN or infinity; masks may hold minus infinity."""
    given = {**{f"argument {place}": value for place, value in enumerate(args)}, **kwargs}
    for name, value in list(given.items()):
        if isinstance(value, Mapping):
            del given[name]
            given.update(value)
    return tuple(
        str(name)
        for name, value in given.items()
        if any(is_spoiled(tensor, minus_infinity="mask" not in str(name)) for tensor in tensors_in(value))
    )


def tensors_in(value: Any, depth: int = 5) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists, mappings and attributes of plain objects."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
        return
    items: Iterable[Any]
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, list | tuple):
        items = value
    else:
        items = () if isinstance(value, nn.Module | type) else getattr(value, "__dict__", {}).values()
    if depth:
        for item in items:
            yield from tensors_in(item, depth - 1)


def is_spoiled(tensor: Tensor, minus_infinity: bool = True) -> bool:
    """Whether there is a NaN or infinity; minus infinity may be meant."""
    values = tensor.detach()
    if bool(torch.isfinite(values).all()):
        return False
    return minus_infinity or bool((values.isnan() | values.isposinf()).any())
