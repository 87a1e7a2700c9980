"""Copies of batches: what a model edits of its input is the copy's."""

from __future__ import annotations

import copy
import dataclasses
import sys
import types
from collections.abc import Mapping
from typing import Any

import torch

from vlmdoctor.sandbox.kinds import ATOMS, kind_of, slots_of

_DEEPEST = 12


def copy_of(batch: Any, depth: int = 0) -> Any:
    """`batch` with its own tensors, arrays, containers and plain objects, so that a model edits a copy."""
    kind = type(batch)
    if kind in ATOMS or depth > _DEEPEST:
        return batch
    if isinstance(batch, torch.Tensor):
        return batch.detach().clone().requires_grad_(batch.requires_grad)
    if isinstance(batch, Mapping):
        return {key: copy_of(value, depth + 1) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(copy_of(value, depth + 1) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(copy_of(value, depth + 1) for value in batch)
    if isinstance(batch, set | bytearray):
        return copy.copy(batch)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(batch, numpy.ndarray):
        return batch.copy()
    if kind is types.SimpleNamespace:
        return kind(**{name: copy_of(value, depth + 1) for name, value in vars(batch).items()})
    return _own(batch, depth) if _is_plain(kind) else batch


def _is_plain(kind: type) -> bool:
    """Whether an object of this class is nothing but its attributes."""
    if issubclass(kind, torch.nn.Module) or kind_of(kind)[0] != "object" or isinstance(kind, type(Mapping)):
        return False
    return kind.__new__ is object.__new__ and (
        dataclasses.is_dataclass(kind) or kind.__reduce_ex__ is object.__reduce_ex__
    )


def _own(one: Any, depth: int) -> Any:
    kind = type(one)
    try:
        made = object.__new__(kind)
        attributes = object.__getattribute__(one, "__dict__") if kind.__dictoffset__ else {}
        for name, value in attributes.items():
            object.__getattribute__(made, "__dict__")[name] = copy_of(value, depth + 1)
        for descriptor in slots_of(kind):
            try:
                value = descriptor.__get__(one, kind)
            except AttributeError:  # it is not set
                continue
            descriptor.__set__(made, copy_of(value, depth + 1))
    except Exception:  # its class has other ideas; what is changed of it is restored in the end
        return one
    return made
