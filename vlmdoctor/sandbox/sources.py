"""States behind objects: generators of random numbers, arrays, files; and how to set them again."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

# Arrays that are larger are a data set's, mostly; what was not kept is named.
LARGEST_ARRAY = 256 << 20


def keep(kind: str, source: Any) -> Callable[[], None] | None:
    """What sets the state of `source` to what it is now, any number of times; None where it can't be kept."""
    return _KEEP[kind](source)


def _torch_random(generator: torch.Generator) -> Callable[[], None]:
    state = generator.get_state()

    def restore() -> None:
        if not torch.equal(generator.get_state(), state):
            generator.set_state(state)

    return restore


def _numpy_random(generator: Any) -> Callable[[], None]:
    if hasattr(generator, "get_state"):  # a RandomState
        state = generator.get_state(legacy=False)
        return partial(generator.set_state, state)
    bits = getattr(generator, "bit_generator", generator)
    state = bits.state

    def restore() -> None:
        bits.state = state

    return restore


def _python_random(generator: Any) -> Callable[[], None]:
    return partial(generator.setstate, generator.getstate())


def _array(array: Any) -> Callable[[], None] | None:
    if array.nbytes > LARGEST_ARRAY:
        return None
    if not array.flags.writeable:
        return _nothing
    import numpy

    # As a plain array: a subclass may have its own ways of being read and written.
    plain = array.view(numpy.ndarray)
    kept = plain.copy()

    def restore() -> None:
        if plain.shape != kept.shape or plain.dtype.hasobject or plain.tobytes() != kept.tobytes():
            if plain.shape != kept.shape:
                plain.shape = kept.shape
            plain[...] = kept

    return restore


def _file(file: Any) -> Callable[[], None]:
    place = file.tell()

    def restore() -> None:
        if not file.closed and file.tell() != place:
            file.seek(place)

    return restore


def _text_or_file(file: Any) -> Callable[[], None]:
    if not isinstance(file, io.TextIOWrapper):
        return _file(file)
    place = file.tell()

    def restore() -> None:
        if not file.closed:
            file.seek(place)  # what a loop over its lines has read ahead is dropped

    return restore


def _memory_file(file: Any) -> Callable[[], None]:
    if file.closed:
        return _nothing
    content, place = file.getvalue(), file.tell()

    def restore() -> None:
        if file.closed:
            return
        if file.getvalue() != content:
            file.seek(0)
            file.truncate()
            file.write(content)
        file.seek(place)

    return restore


def _nothing() -> None:
    return None


_KEEP: dict[str, Callable[[Any], Callable[[], None] | None]] = {
    "torch random": _torch_random,
    "numpy random": _numpy_random,
    "python random": _python_random,
    "array": _array,
    "file": _text_or_file,
    "memory file": _memory_file,
}
