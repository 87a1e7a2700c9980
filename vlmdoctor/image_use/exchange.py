"""A batch with the images of other samples, or with blank ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.probes.batch.fields import Inputs

_GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}
# What belongs to images and goes along with them to another sample.
_BESIDE = ("pixel_attention_mask", "pixel_mask", "aspect_ratio_ids", "aspect_ratio_mask", "image_sizes")


def blank(inputs: Inputs) -> Any:
    """The batch with each image in the mean colour of the batch's images: no picture, and no odd input.

    What is wholly zero, as the stand-in of a sample without an image is, stays zero.
    """
    return inputs.with_(**{name: _blank(inputs[name]) for name in inputs.images})


def shuffled(inputs: Inputs, rows: int) -> Any:
    """The batch with each sample's images exchanged for those of the next one.

    Raises:
        Unavailable: It is not known which image is whose, or all samples have the same image.
    """
    if rows < 2:
        raise Unavailable("the batches hold one sample each; give larger ones")
    changed: dict[str, Any] = {}
    for name, value in _exchanged(inputs, rows):
        changed[name] = value
    if all(torch.equal(changed[name], inputs[name]) for name in inputs.images):
        raise Unavailable("all samples of a batch have the same image")
    return inputs.with_(**changed)


def _exchanged(inputs: Inputs, rows: int) -> Iterator[tuple[str, torch.Tensor]]:
    for name in inputs.images:
        leaf = inputs.leaves.get(name)
        if leaf is not None and leaf.place is not None:
            yield name, _of_next(inputs, name, rows)
        elif isinstance(grid := inputs.fields.get(_GRIDS.get(name, "")), torch.Tensor):
            yield name, _packed(inputs[name], grid, rows)
        elif len(inputs[name]) == rows:
            yield name, inputs[name].roll(-1, dims=0)
        else:
            raise Unavailable("which image belongs to which sample is not known")
    for name in _BESIDE:
        value = inputs.fields.get(name)
        if isinstance(value, torch.Tensor) and len(value) == rows:
            yield name, value.roll(-1, dims=0)


def _of_next(inputs: Inputs, name: str, rows: int) -> torch.Tensor:
    """The image in the same place of the next row's list."""
    leaf = inputs.leaves[name]
    container = inputs.fields[leaf.part]
    if len(container) != rows or leaf.place is None:
        raise Unavailable("which image belongs to which sample is not known")
    after = (leaf.place + 1) % rows
    other = next(
        (o for o in inputs.leaves.values() if o.part == leaf.part and o.path == (after, *leaf.path[1:])), None
    )
    if other is None or other.tensor.shape != leaf.tensor.shape:
        raise Unavailable("the samples have images of different sizes or numbers")
    return other.tensor


def _packed(pixels: torch.Tensor, grid: torch.Tensor, rows: int) -> torch.Tensor:
    """Patches of all images in one tensor: whole images are exchanged where their grids are equal."""
    if len(grid) != rows or not bool((grid == grid[0]).all()):
        raise Unavailable("the samples have images of different sizes or numbers, which can't be exchanged")
    each = int(grid[0].prod())
    if each * rows != len(pixels):
        raise Unavailable("the grids do not fit the pixels")
    return pixels.roll(-each, dims=0)


def _blank(images: torch.Tensor) -> torch.Tensor:
    known = images.float()
    empty = known == 0
    seen = known[~empty] if bool((~empty).any()) else known
    shade = seen.mean().to(torch.float32)
    flat = torch.full_like(known, float(shade))
    if images.ndim > 1:
        nothing = ~images.flatten(1).bool().any(dim=1) if images.is_floating_point() else None
        if nothing is not None and bool(nothing.any()):
            flat[nothing] = 0
    return flat.to(images.dtype)
