"""Functions of torch that reach no operator, or too late: they make tensors of numbers, or read them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from vlmdoctor.dryrun.tensor_tree import tensors_in
from vlmdoctor.dryrun.unknown import UnknownScalar


class Functions(TorchFunctionMode):
    """Runs some functions of torch by others. One mode for all: each is asked at every access to a shape.

    Args:
        functions: What runs in the place of which, beside those that make and read tensors.
    """

    def __init__(self, functions: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._functions = {**_OWN, **functions}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._functions.get(func, func)(*args, **(kwargs or {}))


# Tensors made of numbers in the code have their values, whatever device they are asked for:
# `torch.tensor(..., device=x.device)` reaches no dispatch mode before it is made.
def _literal(make: Callable[..., torch.Tensor], data: Any, *more: Any, **kwargs: Any) -> torch.Tensor:
    device = kwargs.get("device")
    on_meta = device is not None and torch.device(device).type == "meta"
    if on_meta and not any(t.is_meta for t in tensors_in(data)):
        kwargs["device"] = "cpu"
    return make(data, *more, **kwargs)


def _new_literal(tensor: torch.Tensor, data: Any, **kwargs: Any) -> torch.Tensor:
    if not tensor.is_meta:
        return tensor.new_tensor(data, **kwargs)
    return torch.tensor(data, **{"dtype": tensor.dtype, **kwargs, "device": "cpu"})


def _item(tensor: torch.Tensor) -> Any:
    unread = tensor.is_meta and tensor.is_floating_point() and tensor.numel() == 1
    return UnknownScalar() if unread else tensor.item()


_OWN: dict[Any, Callable[..., Any]] = {
    torch.Tensor.item: _item,
    torch.tensor: functools.partial(_literal, torch.tensor),
    torch.as_tensor: functools.partial(_literal, torch.as_tensor),
    torch.Tensor.new_tensor: _new_literal,
}
