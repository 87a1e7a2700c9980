"""Operators of abstract tensors, asked once for each shape of their arguments.

A large model runs the same few operators in every layer, and working out the shape of a result is what takes
PyTorch most of the time of a dry run.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from vlmdoctor.dryrun.tensor_tree import tensors_in

_META = torch.device("meta")
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_UNASKED = object()


class Repeated:
    """Runs operators; one seen before, with arguments of the same shapes, only gives new tensors."""

    def __init__(self) -> None:
        self._results: dict[Any, Any] = {}

    def __call__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What `func(*args, **kwargs)` gives, where no tensor but scalars has content."""
        if not _makes_new(func):
            return func(*args, **kwargs)
        try:
            key = (func, _signature(args), _signature(tuple(kwargs.items())))
            known = self._results.get(key, _UNASKED)
        except TypeError:  # not hashable, or a tensor of a class of its own
            return func(*args, **kwargs)
        if known is _UNASKED:
            out = func(*args, **kwargs)
            self._results[key] = _described(out, (args, tuple(kwargs.values())))
            return out
        return func(*args, **kwargs) if known is None else _made(known)


@functools.cache
def _makes_new(func: Any) -> bool:
    """Whether an operator, by its declaration, writes into nothing and gives no view."""
    plain = func.namespace == "aten" and not func._schema.is_mutable
    return plain and all(result.alias_info is None for result in func._schema.returns)


def _signature(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return (value.shape, value.stride(), value.storage_offset(), value.dtype, value.is_meta)
    if kind is tuple or kind is list:
        return (kind, *map(_signature, value))
    if isinstance(value, torch.Tensor | dict):
        raise TypeError
    return kind, value  # 1, 1.0 and True are equal, and not the same


def _described(out: Any, given: Any) -> Any:
    """How to make such a result again; None where it has to be computed each time."""
    taken = {t.untyped_storage()._cdata for t in tensors_in(given)}

    def described(value: Any) -> Any:
        if type(value) is torch.Tensor:
            storage = value.untyped_storage()
            size, stride = tuple(value.shape), value.stride()
            again = torch.empty_strided(size, stride, dtype=value.dtype, device=_META)
            fresh = value.is_meta and not value.storage_offset() and not value.dtype.is_complex
            if not fresh or storage._cdata in taken or storage.nbytes() != again.untyped_storage().nbytes():
                raise TypeError
            taken.add(storage._cdata)
            return _Tensor((size, stride, value.dtype))
        if isinstance(value, tuple | list):
            return type(value)(map(described, value))
        if value is None or isinstance(value, int | float):
            return value
        raise TypeError

    try:
        return described(out)
    except TypeError:
        return None


class _Tensor(tuple[Any, ...]):
    """(shape, strides, dtype) of one that is to be made."""


def _made(known: Any) -> Any:
    if type(known) is _Tensor:
        return torch.empty_strided(known[0], known[1], dtype=known[2], device=_META)
    return type(known)(map(_made, known)) if isinstance(known, tuple | list) else known
