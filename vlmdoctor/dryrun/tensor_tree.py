"""Tensors inside the arguments of an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in lists, tuples and dictionaries, however deep."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple | dict):
        parts = value.values() if isinstance(value, dict) else value
        return [t for part in parts for t in tensors_in(part)]
    return []


def changed(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """`value`, its tensors changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)([changed(change, part) for part in value])
    return {name: changed(change, part) for name, part in value.items()} if type(value) is dict else value
