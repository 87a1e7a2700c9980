"""The images of a batch that stand inside its parts: in mappings, in lists, in lists of lists.

A processor's output that was put into a batch whole (`pixel_values={"pixel_values": [B, C, H, W]}`), and one
list of images for each row (`images=[[[C, H, W], ...], ...]`), hold images as much as a tensor does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

DEEPEST = 4
MOST = 256  # leaves: a batch of more images is examined by the first ones
_FEWEST_SIDES = 2  # axes of an image
_NO_IMAGES = re.compile(r"mask|size|grid|ratio|position|embed")
Step = str | int


@dataclass(frozen=True)
class Leaf:
    """A tensor inside a part of a batch.

    Attributes:
        part: The part's name.
        path: The keys and places that lead from the part to the tensor.
        tensor: The tensor.
    """

    part: str
    path: tuple[Step, ...]
    tensor: torch.Tensor

    @property
    def name(self) -> str:
        """Such as `pixel_values.pixel_values` or `images[0][1]`."""
        return self.part + "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in self.path)

    @property
    def place(self) -> int | None:
        """The place in the part's list that it stands in; None where the part is no list."""
        return self.path[0] if isinstance(self.path[0], int) else None


def image_leaves(fields: Mapping[str, Any]) -> dict[str, Leaf]:
    """The images inside of parts that are no tensors themselves, by name, in the batch's order."""
    leaves: dict[str, Leaf] = {}
    for name, value in fields.items():
        if isinstance(value, torch.Tensor) or not isinstance(name, str):
            continue
        for leaf in _leaves(name, (), value):
            if len(leaves) == MOST:
                return leaves
            if _is_image(leaf):
                leaves[leaf.name] = leaf
    return leaves


def replaced(value: Any, path: tuple[Step, ...], tensor: Any) -> Any:
    """A part of a batch with the tensor at `path` replaced; what is not on the way to it is shared."""
    if not path:
        return tensor
    first, others = path[0], path[1:]
    if isinstance(value, Mapping):
        return _like(value, {**value, first: replaced(value[first], others, tensor)})
    items = [replaced(item, others, tensor) if place == first else item for place, item in enumerate(value)]
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _like(value: Any, changed: dict[Any, Any]) -> Any:
    """A mapping of the same class where it can be made of one, such as transformers' BatchFeature."""
    if type(value) is dict:
        return changed
    try:
        return type(value)(changed)
    except Exception:
        return changed


def _leaves(part: str, path: tuple[Step, ...], value: Any) -> Iterator[Leaf]:
    if isinstance(value, torch.Tensor):
        if path:
            yield Leaf(part, path, value)
    elif len(path) >= DEEPEST:
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str):
                yield from _leaves(part, (*path, key), item)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _leaves(part, (*path, place), item)


def _is_image(leaf: Leaf) -> bool:
    """Numbers that are no ids, of two axes at least, under a name that does not say something else."""
    tensor = leaf.tensor
    pixels = tensor.is_floating_point() or tensor.dtype == torch.uint8
    words = [leaf.part, *(step for step in leaf.path if isinstance(step, str))]
    named = any(re.search("pixel|image|img|picture|flattened_patches", word.lower()) for word in words)
    excluded = any(_NO_IMAGES.search(word.lower()) for word in words)
    enough = tensor.ndim >= _FEWEST_SIDES if named else tensor.ndim >= _FEWEST_SIDES + 1
    return pixels and enough and not excluded
