"""Bytes that are alive, and floating-point operations, while operators run."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry


class Ledger:
    """Adds up what operators allocate and compute; `observe` is given to `Abstract`.

    Attributes:
        live: Bytes of the tensors made so far that are still in use.
        peak: The most that were alive at once.
        peak_at: (phase, module, operator) at that moment.
        flops: Floating-point operations by (phase, module).
        phase: Set by whoever runs: `forward` or `backward`.
        module: Set by whoever runs: the innermost module that is running, or an empty text.
    """

    # What is alive at the peak, by what it is for.
    GRADIENTS, GATHERED, ACTIVATIONS, TEMPORARY = "gradients", "gathered", "activations", "temporary"

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self.peak_at = ("forward", "", "")
        self.flops: dict[tuple[str, str], int] = {}
        self.made: dict[str, int] = {}
        self.phase = "forward"
        self.module = ""
        self._known: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}
        # What a storage is for is often known only later, so changes are kept: (number, bytes).
        self._numbers: dict[int, int] = {}
        self._purposes: dict[int, str] = {}
        self._changes: list[tuple[int, int]] = []
        self._peak_after = 0

    @contextlib.contextmanager
    def resizes(self) -> Iterator[None]:
        """Inside, storages that are emptied and filled again are followed: so FSDP treats what it gathers."""
        storages: Any = torch.UntypedStorage
        original = storages.resize_

        def resize(storage: Any, size: Any) -> Any:
            done = original(storage, size)
            self._resized(storage)
            return done

        storages.resize_ = resize
        try:
            yield
        finally:
            storages.resize_ = original

    def already(self, tensors: Any) -> None:
        """Tensors that are counted elsewhere, such as parameters."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = storage

    def end_forward(self) -> None:
        """What is alive now is kept for backward: the activations."""
        for number in self._numbers.values():
            self._purposes.setdefault(number, self.ACTIVATIONS)

    def gradient(self, tensor: Any) -> None:
        """This tensor is the gradient of a parameter."""
        number = self._numbers.get(tensor.untyped_storage()._cdata)
        if number is not None:
            self._purposes[number] = self.GRADIENTS

    def at_peak(self) -> dict[str, int]:
        """The bytes of the peak by purpose; their sum is `peak`."""
        parts: dict[str, int] = {}
        for number, change in self._changes[: self._peak_after]:
            purpose = self._purposes.get(number, self.TEMPORARY)
            parts[purpose] = parts.get(purpose, 0) + change
        return parts

    def observe(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Counts one operator."""
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor, func)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            try:
                flops = formula(*args, **kwargs, out_val=out)
            except (AssertionError, TypeError, ValueError, IndexError):
                flops = _attention_flops(func, args)
            key = (self.phase, self.module)
            self.flops[key] = self.flops.get(key, 0) + int(flops)

    def _count(self, tensor: torch.Tensor, func: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return

        def gone(_: Any, key: int = key) -> None:
            self._known.pop(key, None)
            size, number = self._sizes.pop(key, 0), self._numbers.pop(key, -1)
            self.live -= size
            self._changes.append((number, -size))

        self._known[key] = weakref.ref(storage, gone)
        self._sizes[key] = size = storage.nbytes()
        self._numbers[key] = len(self._changes)
        self._add(key, size, func.overloadpacket.__name__)

    def _resized(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes:
            size = storage.nbytes()
            self._purposes[self._numbers[key]] = self.GATHERED
            self._add(key, size - self._sizes[key], "resize_")
            self._sizes[key] = size

    def _add(self, key: int, size: int, operator: str) -> None:
        self.live += size
        self._changes.append((self._numbers[key], size))
        if self.live > self.peak:
            self.peak = self.live
            self.peak_at = (self.phase, self.module, operator)
            self._peak_after = len(self._changes)


def _attention_flops(func: Any, args: Any) -> int:
    """The formulas of torch refuse fewer key heads than query heads; the work is that of the query heads."""
    shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor) and a.ndim == 4]
    backward = "backward" in func.overloadpacket.__name__
    query, key = (shapes[1], shapes[2]) if backward and len(shapes) > 2 else (shapes + [()] * 2)[:2]
    if not query or not key:
        return 0
    batch, heads, length, width = query
    return (5 if backward else 2) * 2 * batch * heads * length * key[2] * width
