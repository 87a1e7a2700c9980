"""Copies what is written to, before it is: only tensors that were there before count, wherever they hang."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

MOST_BYTES = 1 << 30  # that are copied, into the host's memory
_RUNNING = ("running_mean", "running_var")  # batch norm writes these without saying so in its schema
_NEVER = ("set_", "resize_", "swap")


class Unkeepable(Exception):
    """Something that a pass may move can't be put back."""


class Writes(TorchDispatchMode):
    """While it is entered, the storages written to by operators are copied first.

    Raises:
        Unkeepable: From within the operator that would write what can't be put back; and from then on always.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refused: Unkeepable | None = None
        self._fresh: set[int] = set()  # storages that were made inside
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._versions: list[tuple[Tensor, int]] = []
        self._bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.refused is not None:
            raise self.refused
        before = {_key(tensor) for tensor in tree_flatten((args, kwargs))[0] if _has_storage(tensor)}
        for tensor in _written(function, args, kwargs):
            try:
                self._keep(tensor, function)
            except Unkeepable as error:
                self.refused = error
                raise
        made = function(*args, **kwargs)
        for tensor in tree_flatten(made)[0]:
            if _has_storage(tensor) and (key := _key(tensor)) not in before:
                self._fresh.add(key)
        return made

    def restore(self) -> None:
        """Puts back what was written; more calls do no harm."""
        with torch.no_grad():
            for live, kept in self._kept.values():
                if not same_bytes(live, kept.to(live.device)):
                    live.copy_(kept)
        for tensor, version in self._versions:
            torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))

    def _keep(self, tensor: Tensor, function: Any) -> None:
        if not _has_storage(tensor) or _key(tensor) in self._fresh:
            return
        if function._schema.name.rpartition("::")[2].startswith(_NEVER):
            raise Unkeepable("the forward pass changes the memory of a tensor")
        if torch.is_grad_enabled() and tensor.grad_fn is not None:
            raise Unkeepable("the forward pass writes to a tensor that belongs to a graph")
        if not tensor.is_inference():
            self._versions.append((tensor, tensor._version))
        key = _key(tensor)
        if key in self._kept:
            return
        storage = tensor.untyped_storage()
        self._bytes += storage.nbytes()
        if self._bytes > MOST_BYTES:
            raise Unkeepable(f"the forward pass writes more than {MOST_BYTES >> 30} GiB of the model")
        live = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        self._kept[key] = live, live.to("cpu", copy=True)


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and type are the same to the bit; NaN is itself."""
    a, b = a.contiguous().view(-1), b.contiguous().view(-1)
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _has_storage(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
        return False
    return type(value).__torch_dispatch__ is Tensor.__torch_dispatch__


def _written(function: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    schema = function._schema
    silent = "batch_norm" in schema.name
    for place, argument in enumerate(schema.arguments):
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if not writes and not (silent and argument.name in _RUNNING):
            continue
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        yield from (one for one in tree_flatten(value)[0] if isinstance(one, Tensor))
