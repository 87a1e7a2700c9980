"""Copying a model with what belongs to it, so that the copy runs itself and not the original."""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def clone_together(model: nn.Module, *others: Any) -> tuple[Any, ...]:
    """`model` and `others`, copied together: an optimizer's copy holds the copied model's parameters.

    Functions are shared between copies. One that took the place of a module's `forward` and holds on to the
    original (`model.forward = torch.compile(model.forward)`, or a wrapper around it) is made anew. What
    modules have kept of the last pass, such as an auxiliary loss, is copied without its graph.

    Raises:
        Exception: What something raises that can't be copied.
    """
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _with_a_history(model)}
    made = copy.deepcopy((model, *others), memo)
    for module in model.modules():
        replaced = vars(module).get("forward")
        if isinstance(replaced, types.FunctionType):
            memo[id(module)].forward = _bound_anew(replaced, memo)
    return made


def _with_a_history(model: nn.Module) -> Iterator[torch.Tensor]:
    for value in (value for module in model.modules() for value in vars(module).values()):
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, torch.Tensor) and not one.is_leaf:
                yield one


def _bound_anew(value: Any, memo: dict[int, Any]) -> Any:
    """`value` with the copies in the place of the modules that it holds on to."""
    if isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if isinstance(value, types.MethodType):
        return types.MethodType(_bound_anew(value.__func__, memo), _bound_anew(value.__self__, memo))
    if not isinstance(value, types.FunctionType):
        return value
    if id(value) in memo:  # it may call itself
        return memo[id(value)]
    compiled = getattr(value, "_torchdynamo_orig_callable", None)
    if compiled is not None:  # a copy is not compiled anew for a few steps
        return _bound_anew(compiled, memo)
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    twin = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
    memo[id(value)] = twin
    for cell, known in zip(cells, value.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it is empty
            cell.cell_contents = _bound_anew(known.cell_contents, memo)
    if value.__defaults__ is not None:
        twin.__defaults__ = tuple(_bound_anew(default, memo) for default in value.__defaults__)
    if value.__kwdefaults__ is not None:
        twin.__kwdefaults__ = {name: _bound_anew(v, memo) for name, v in value.__kwdefaults__.items()}
    twin.__dict__ = {name: _bound_anew(v, memo) for name, v in vars(value).items()}
    return twin
