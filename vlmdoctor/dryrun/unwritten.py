"""Real tensors whose values nobody knows: made empty, or written from abstract ones."""

from __future__ import annotations

import weakref

import torch


class Unwritten:
    """The storages of such tensors, for as long as they live."""

    def __init__(self) -> None:
        # Storage -> (itself, elements that were not written yet). An address alone would be used again.
        self._missing: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def __bool__(self) -> bool:
        return bool(self._missing)

    def __contains__(self, tensor: torch.Tensor) -> bool:
        if not self._missing or tensor.is_meta:
            return False
        held = self._missing.get(tensor.untyped_storage()._cdata)
        return held is not None and held[0]() is not None

    def add(self, tensor: torch.Tensor) -> None:
        """Nothing of what `tensor` holds is known."""
        storage = tensor.untyped_storage()
        if not storage.nbytes():
            return
        key = storage._cdata

        def forget(gone: weakref.ref[torch.UntypedStorage]) -> None:
            if self._missing.get(key, (None, 0))[0] is gone:
                del self._missing[key]

        self._missing[key] = (weakref.ref(storage, forget), storage.nbytes() // tensor.element_size())

    def written(self, tensor: torch.Tensor) -> None:
        """All of `tensor`, which may be a part of its storage, was written with known values."""
        key = tensor.untyped_storage()._cdata
        reference, missing = self._missing[key]
        if tensor.numel() >= missing:
            del self._missing[key]
        else:
            self._missing[key] = (reference, missing - tensor.numel())


# One for all executors: a buffer that was left empty while the model was built is unknown in the step too.
UNWRITTEN = Unwritten()
