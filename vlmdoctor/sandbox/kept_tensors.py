"""Tensors kept aside and put back bit for bit: few in memory, many where they are not in the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vlmdoctor.errors import NotRestored, Unavailable
from vlmdoctor.plain_text import first_line, text_of
from vlmdoctor.sandbox.kept_file import KeptFile
from vlmdoctor.sandbox.memory import free_memory

# Beyond so many bytes a second set of weights is felt: what is tried meanwhile shall have the memory.
IN_MEMORY = 64 << 20
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class KeptTensors:
    """The values of tensors at one moment.

    They are safe before the constructor returns: a file has been read back and compared, or there is no file.

    Args:
        tensors: Dense ones.
        aside: Where they are many, those on an accelerator go to the host's memory, and the host's own into
            an unnamed temporary file: slower, and out of the way. Where no disk has room they are copied in
            memory.
        owner: Has names for the tensors, for the message where one can't be put back.

    Raises:
        Unavailable: There is no room for them anywhere. Nothing has been changed.
    """

    def __init__(
        self, tensors: Sequence[torch.Tensor], *, aside: bool = False, owner: nn.Module | None = None
    ) -> None:
        self._owner = owner
        # (the tensor, its memory as it is now, what puts the values back)
        self._kept: list[tuple[torch.Tensor, torch.Tensor, Callable[[], None]]] = []
        self._failed: list[tuple[torch.Tensor, torch.Tensor, Callable[[], None]]] = []
        self._file: KeptFile | None = None
        aside = aside and sum(tensor.nbytes for tensor in tensors) > IN_MEMORY
        try:
            with torch.no_grad():
                self._keep(tensors, aside=aside)
        except (MemoryError, RuntimeError) as error:
            self._close()
            if not _is_about_memory(error):
                raise
            size = sum(tensor.nbytes for tensor in tensors)
            raise Unavailable(_no_room(size, error)) from error

    def restore(self) -> None:
        """Gives them their values back; what is unchanged is not written to.

        An error at one tensor does not stop the others. A second call does only what the first could not.

        Raises:
            NotRestored: Names the tensors whose values are lost.
        """
        self._kept, self._failed = [*self._kept, *self._failed], []
        first: Exception | None = None
        with torch.no_grad():
            # Taken out when it is done, so that an interrupted call can be made again.
            while self._kept:
                tensor, memory, put_back = self._kept[-1]
                try:
                    put_back()
                    if not _is(tensor, memory):
                        tensor.data = memory
                except Exception as error:
                    self._failed.append(self._kept[-1])
                    first = first or error
                self._kept.pop()
        if first is None:
            self._close()
            return
        lost = [tensor for tensor, _, _ in reversed(self._failed)]
        raise NotRestored(_lost(lost, self._owner, first)) from first

    def _keep(self, tensors: Sequence[torch.Tensor], *, aside: bool) -> None:
        to_file = [
            tensor
            for tensor in tensors
            if aside and tensor.device.type == "cpu" and _bits(tensor) is not None
        ]
        places = self._in_file(to_file)
        of_file = {id(tensor) for tensor in to_file} if places else set()
        if aside:
            rest = [tensor for tensor in tensors if id(tensor) not in of_file]
            _expect_memory(sum(tensor.nbytes for tensor in rest))
        for tensor in tensors:
            memory = tensor.data
            if self._file is not None and id(tensor) in of_file:
                put_back = partial(_from_file, self._file, places[id(tensor)], memory)
            else:
                copy = memory.cpu() if aside and memory.device.type != "cpu" else memory.clone()
                put_back = partial(_from_copy, copy, memory)
            self._kept.append((tensor, memory, put_back))

    def _in_file(self, tensors: list[torch.Tensor]) -> dict[int, int]:
        """Where each one's bytes begin in the file; nothing where they are not all in a file."""
        if not tensors:
            return {}
        contents = [bits for tensor in tensors if (bits := _bits(tensor)) is not None]
        try:
            self._file = KeptFile(sum(map(len, contents)))
            places = [self._file.append(content) for content in contents]
            self._file.check(list(zip(places, contents, strict=True)))
        except OSError:  # no space is left, say; half of them in a file would be no safer
            self._close()
            return {}
        return {id(tensor): place for tensor, place in zip(tensors, places, strict=True)}

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _bits(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor's memory as flat bytes; None where it is not one piece of plain memory."""
    data = tensor.data
    if type(data) is not torch.Tensor or data.layout is not torch.strided or not data.numel():
        return None
    if data.is_complex() or data.is_neg() or data.is_quantized or not _is_one_piece(data):
        return None
    return data.as_strided((data.numel(),), (1,)).view(torch.uint8)


def _is_one_piece(data: torch.Tensor) -> bool:
    """Whether its elements fill its memory without gaps, each its own place, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(data.stride(), data.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _is(tensor: torch.Tensor, memory: torch.Tensor) -> bool:
    """Whether a tensor still lies in that memory, in the same form."""
    data = tensor.data
    same = data.shape == memory.shape and data.dtype == memory.dtype and data.device == memory.device
    return same and (type(data) is not torch.Tensor or _place(data) == _place(memory))


def _place(data: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    return data.data_ptr(), data.stride()


def _from_file(file: KeptFile, place: int, memory: torch.Tensor) -> None:
    _take_room(memory)
    bits = _bits(memory)
    assert bits is not None  # as when they were written into the file
    with _writable(memory):
        file.fill(place, bits)


def _from_copy(copy: torch.Tensor, memory: torch.Tensor) -> None:
    _take_room(memory)
    if _same_bits(memory, copy):
        return
    for dimension, stride in enumerate(memory.stride()):
        if stride == 0 and memory.shape[dimension] > 1:  # many elements in one place refuse to be written
            memory, copy = memory.narrow(dimension, 0, 1), copy.narrow(dimension, 0, 1)
    with _writable(memory):
        memory.copy_(copy)


def _writable(memory: torch.Tensor) -> AbstractContextManager[object]:
    return torch.inference_mode() if memory.is_inference() else nullcontext()


def _take_room(memory: torch.Tensor) -> None:
    """Gives the tensor its memory again, where it was given back meanwhile."""
    if type(memory) is not torch.Tensor or memory.data_ptr() or not memory.numel():
        return
    last = sum((size - 1) * stride for size, stride in zip(memory.shape, memory.stride(), strict=True))
    memory.untyped_storage().resize_(int((memory.storage_offset() + last + 1) * memory.element_size()))


def _same_bits(memory: torch.Tensor, copy: torch.Tensor) -> bool:
    """Whether nothing has to be written; where that can't be found out without memory, False."""
    if copy.device != memory.device:
        return False
    try:
        if type(memory) is torch.Tensor and not memory.is_quantized and memory.dtype.itemsize in _INTEGERS:
            kind = _INTEGERS[
                memory.dtype.itemsize
            ]  # 0.0 equals -0.0, and NaN nothing: as integers they don't
            return torch.equal(memory.view(kind), copy.view(kind))
        return torch.equal(memory, copy) and torch.equal(memory.signbit(), copy.signbit())
    except RuntimeError:
        return False


def _expect_memory(size: int) -> None:
    """Refuses what the machine has no memory for, since the operating system would end the process."""
    free = free_memory(Path("/"))
    if free is not None and size > free:
        raise MemoryError(f"{free / 2**20:,.0f} MiB of memory are free")


def _is_about_memory(error: BaseException) -> bool:
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "allocate" in text_of(error)  # torch has no exception of its own for the host's memory


def _no_room(size: int, error: BaseException) -> str:
    return (
        f"{size / 2**20:,.0f} MiB of weights have to be kept meanwhile, and neither the folder for temporary "
        f"files nor the memory has room for them ({first_line(error, 200)}); "
        "set TMPDIR to a folder on a disk with more space"
    )


def _lost(tensors: list[torch.Tensor], owner: nn.Module | None, error: Exception) -> str:
    names: dict[int, str] = {}
    if owner is not None:
        from vlmdoctor.sandbox.unregistered import unregistered_parameters

        found = [*owner.named_parameters(), *owner.named_buffers(), *unregistered_parameters(owner).items()]
        names = {id(tensor): name for name, tensor in found}
    shown = [names.get(id(tensor), f"a tensor of shape {list(tensor.shape)}") for tensor in tensors]
    more = f" and {len(shown) - 10:,} more" if len(shown) > 10 else ""
    count = "1 tensor" if len(shown) == 1 else f"{len(shown):,} tensors"
    return (
        f"the values of {count} could not be put back ({getattr(error, 'strerror', None) or error}): "
        f"{', '.join(shown[:10])}{more}; load the weights again before the model is used."
    )
