"""One training example, and the random numbers that the built-in ones are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

    Image = PIL.Image.Image | np.ndarray

Split = Literal["train", "test"]
Message = Mapping[str, str]
T = TypeVar("T")

IMAGE_PLACEHOLDER = "<image>"
"""Stands for one image in a message's text; the processor expands it to one token per image feature."""


@dataclass(frozen=True)
class Sample:
    """A conversation about some images.

    Attributes:
        messages: `{"role": "system" | "user" | "assistant", "content": text}` in order. The texts hold one
            `<image>` for each image.
        images: In the order of their placeholders: PIL images, or uint8 arrays [height, width, 3].
        kind: What is asked (`left`, `sum`, `name`, ...), so that accuracy can be told per kind.
    """

    messages: tuple[Message, ...]
    images: tuple[Image, ...]
    kind: str


class Dataset(Protocol):
    """What training and evaluation read from.

    Attributes:
        name: What to call it in messages.
        endless: There is a sample for every index from 0 on, and `len()` is only what is called an epoch.
        headline_kinds: The kinds of question whose accuracy is *the* accuracy.
        blocks: Lengths of the runs of samples that can only be read together; empty where it doesn't matter.
        report: Which rows could not be used and why; None for the built-in data, which has no such rows.
    """

    name: str
    endless: bool
    headline_kinds: tuple[str, ...]
    blocks: tuple[int, ...]

    @property
    def report(self) -> Any: ...

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sample]: ...
    def __getitem__(self, i: int) -> Sample: ...

    def evaluation_set(self, n: int) -> list[Sample]:
        """A fixed choice of `n` samples (fewer, if there are no more): the same for every run and seed."""
        ...

    def contrastive_pair(self, i: int) -> tuple[Image, str, int]:
        """An image, a text that tells what is on it, and a number: equal numbers mean equal texts."""
        ...


def question(image: np.ndarray, text: str, answer: str, kind: str) -> Sample:
    """The sample of one image, one question and one answer."""
    messages = (
        {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{text}"},
        {"role": "assistant", "content": answer},
    )
    return Sample(messages, (image,), kind)


class Draws:
    """Random numbers that are a pure function of a key, such as ("digits", seed, split, index).

    A sample can thus be made again from its index alone, in any process and in any order, which is what
    makes a resumed run see the very same data. One hash gives 512 bits, and each draw takes its share
    of them: about 2 µs for all draws of a sample, where setting up a numpy generator costs 20.
    """

    __slots__ = ("_bits",)

    def __init__(self, *key: object) -> None:
        self._bits = int.from_bytes(hashlib.blake2b(repr(key).encode()).digest(), "little")

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1; all draws of one object together must stay well under 2**512."""
        self._bits, number = divmod(self._bits, n)
        return number

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]


def shuffled_range(n: int, *key: object) -> list[int]:
    """0 to n - 1 in an order that depends on the key alone, not on any library's shuffling."""
    return sorted(range(n), key=lambda i: Draws(*key, n, i).below(2**64))
