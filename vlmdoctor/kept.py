"""Tensors kept aside and put back bit for bit: few in memory, many where they are not in the way."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO

import torch

# Beyond so many bytes a second set of weights is felt: what is tried meanwhile shall have the memory.
IN_MEMORY = 64 << 20


class Kept:
    """The values of tensors at one moment.

    Args:
        tensors: Dense ones.
        aside: Where they are many, those on an accelerator go to the host's memory, and the host's own into
            an unnamed temporary file (into memory where none can be written): slower, and out of the way.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], *, aside: bool = False) -> None:
        aside = aside and sum(tensor.nbytes for tensor in tensors) > IN_MEMORY
        self._file: IO[bytes] | None = None
        self._kept = [(tensor, self._aside(tensor) if aside else _cloned(tensor)) for tensor in tensors]

    def restore(self) -> None:
        """Gives them their values back, once; what is unchanged is not written to."""
        with torch.no_grad():
            for tensor, value in self._kept:
                kept = value().to(tensor.device)
                if tensor.shape != kept.shape or tensor.dtype != kept.dtype:
                    tensor.data = kept
                elif not _same_bits(tensor, kept):
                    tensor.data.copy_(kept)
        if self._file is not None:
            self._file.close()

    def _aside(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        if tensor.device.type != "cpu":
            kept = tensor.detach().cpu()
            return lambda: kept
        if type(tensor.data) is not torch.Tensor or tensor.is_complex() or not tensor.numel():
            return _cloned(tensor)
        try:
            file = self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 (closed in `restore`)
            place = file.seek(0, io.SEEK_END)
            file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
            file.flush()
        except OSError:  # no space is left, say
            return _cloned(tensor)
        return partial(_read, file, place, tensor.shape, tensor.dtype)


def _cloned(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    kept = tensor.detach().clone()
    return lambda: kept


def _read(file: IO[bytes], place: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    file.seek(place)
    content = bytearray(file.read(shape.numel() * dtype.itemsize))
    return torch.frombuffer(content, dtype=dtype).view(shape)


def _same_bits(tensor: torch.Tensor, kept: torch.Tensor) -> bool:
    if torch.equal(tensor, kept):
        # 0.0 equals -0.0; a sign bit that moved is put back too.
        return not tensor.is_floating_point() or torch.equal(tensor.signbit(), kept.signbit())
    return False
