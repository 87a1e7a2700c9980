"""Measuring how rough pictures are, in the order in which their pixels lie and in others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.image_layout import ImageLayout, LayoutSmoothness
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.subject import Subject

MOST = 8  # pictures
SMALLEST = 8  # pixels along a side, below which there is little to compare
_CHANNELS = 3


def probe(subject: Subject, gather: Callable[[type], Any]) -> ImageLayout:
    """Reads the pixels of the batch; runs nothing."""
    if subject.batch is None or subject.model is None:
        raise Unavailable("no batch was given, or no model")
    return measure(subject)


def measure(subject: Subject) -> ImageLayout:
    """The readings of the batch's pictures."""
    model = innermost(subject.model)
    inputs = Inputs(model, subject.batch, apart=subject.loss_fn is not None)
    if len(inputs.images) != 1:
        raise Unavailable("the batch holds no images, or several kinds of them")
    name = inputs.images[0]
    pixels = inputs[name].detach()
    if pixels.is_meta or not bool(pixels.isfinite().all()):
        raise Unavailable("the pixels are not finite, or on the meta device")
    grids = inputs.fields.get("image_grid_thw")
    if isinstance(grids, torch.Tensor) and pixels.ndim == 2:
        return ImageLayout(name=name, grids=tuple(_of_grids(pixels, grids, _patch(model))))
    if pixels.ndim < 4 or pixels.shape[-3] != _CHANNELS or min(pixels.shape[-2:]) < SMALLEST:
        raise Unavailable("the pixels are not laid out as images with three channels")
    return ImageLayout(name=name, channels_last=tuple(_of_pictures(pixels.flatten(0, -4))))


def _of_pictures(pictures: torch.Tensor) -> Iterator[LayoutSmoothness]:
    height, width = pictures.shape[-2:]
    for number, picture in enumerate(pictures[:MOST]):
        spread = float(picture.float().std())
        if not spread:
            continue
        own = picture.float() / spread
        other = own.reshape(height, width, _CHANNELS).permute(2, 0, 1)
        yield LayoutSmoothness(image=number, given=_rough(own), other=_rough(other), size=(height, width))


def _rough(picture: torch.Tensor) -> float:
    """The mean step between neighbours of a picture [C, H, W]."""
    return float(picture.diff(dim=-1).abs().mean() + picture.diff(dim=-2).abs().mean()) / 2


def _patch(model: Any) -> int:
    vision = getattr(getattr(model, "config", None), "vision_config", None)
    patch = getattr(vision, "patch_size", None)
    if not isinstance(patch, int):
        raise Unavailable("the side of a patch is not known")
    return patch


def _of_grids(pixels: torch.Tensor, grids: torch.Tensor, side: int) -> Iterator[LayoutSmoothness]:
    depth, rest = divmod(pixels.shape[1], side * side)
    if rest or int(grids.prod(dim=1).sum()) != len(pixels):
        raise Unavailable("the patches are not squares, or not as many as the grids say")
    start = 0
    for number, (frames, rows, columns) in enumerate(grids[:MOST].tolist()):
        end = start + frames * rows * columns
        patches = pixels[start:end].float().unflatten(1, (depth, side, side))
        start = end
        spread = float(patches.std())
        if frames != 1 or rows == columns or min(rows, columns) < 2 or not spread:
            continue
        patches = patches / spread
        inside = float(patches.diff(dim=-1).abs().mean() + patches.diff(dim=-2).abs().mean()) / 2
        given, other = _seams(patches, rows, columns), _seams(patches, columns, rows)
        yield LayoutSmoothness(image=number, given=given, other=other, inside=inside, size=(rows, columns))


def _seams(patches: torch.Tensor, rows: int, columns: int) -> float:
    """The mean step [P, D, p, p] across the seams, in the better of the orders in which patches may lie."""
    found = []
    for block in (1, 2):
        if rows % block or columns % block:
            continue
        order = torch.empty(rows, columns, dtype=torch.long)
        places = product(range(rows // block), range(columns // block), range(block), range(block))
        for i, (row, column, inner_row, inner_column) in enumerate(places):
            order[row * block + inner_row, column * block + inner_column] = i
        laid = patches[order]  # [h, w, D, p, p]
        across = (laid[:, 1:, ..., 0] - laid[:, :-1, ..., -1]).abs().mean()
        down = (laid[1:, ..., 0, :] - laid[:-1, ..., -1, :]).abs().mean()
        found.append(float(across + down) / 2)
    return min(found)
