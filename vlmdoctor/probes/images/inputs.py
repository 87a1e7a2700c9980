"""What a batch says about its images beside the pixels: grids, sizes and masks, held against each other.

Shapes:
    N images, P patches of all images, D numbers in a patch, B rows, H height, W width
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    import torch

    from vlmdoctor.subject import Subject

DEPTH = "static"
_GRID = re.compile(r"(image|video)_grid_(thw|hws?)|(image|video)_grids?|grid_(thw|hws?)")
_PIXEL_MASK = re.compile(
    r"(pixel|image|img|patch|vision|cross)_?(attention)?_?(attn)?_?mask|image_attention_mask"
)
_PER_IMAGE = re.compile(r"image_sizes|original_sizes|images_spatial_crop|spatial_shapes")


@dataclass(frozen=True)
class Grid:
    """The grids [N, 2 or 3] of images whose patches lie in one flat tensor [P, D].

    Attributes:
        name, pixels: The keys of the two.
        grids: How many there are.
        wanted: The patches that they speak of, in sum.
        patches: The patches that there are.
    """

    name: str
    pixels: str
    grids: int
    wanted: int
    patches: int


@dataclass(frozen=True)
class Mask:
    """A mask of pixels, patches or images.

    Attributes:
        name: Its key.
        shape: Its shape.
        kept: How many of its places are not 0.
        answers: How many supervised tokens are foretold by a token that it speaks of; 0 where it does not
            speak of tokens.
        answers_seeing: How many of those tokens may look at an image.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    answers: int = 0
    answers_seeing: int = 0


@dataclass(frozen=True)
class ImageInputs:
    """What was found in the batch.

    Attributes:
        grids: Grids with the patches that they belong to.
        masks: Masks of what the vision encoder or the cross-attention may look at.
        images: The number of images by the pixels' first dimension; None where that does not say it.
        per_image: (key, entries) of tensors that have one entry for each image.
        blank: Whether all pixels have one value, as in the stand-in of a batch of text alone.
    """

    grids: tuple[Grid, ...] = ()
    masks: tuple[Mask, ...] = ()
    images: int | None = None
    per_image: tuple[tuple[str, int], ...] = ()
    blank: bool = False


def probe(subject: Subject, gather: Callable[[type], Any]) -> ImageInputs:
    """Reads the batch's keys, and runs nothing."""
    import torch

    batch = subject.batch
    if not isinstance(batch, Mapping):
        raise Unavailable("no batch with named parts was given")
    tensors = {
        str(name): value
        for name, value in batch.items()
        if isinstance(value, torch.Tensor) and not value.is_meta
    }
    pixels = tensors.get("pixel_values")
    return ImageInputs(
        grids=tuple(_grids(tensors)),
        masks=tuple(
            Mask(name, tuple(value.shape), int((value != 0).sum()), *_answers(value, tensors.get("labels")))
            for name, value in tensors.items()
            if _PIXEL_MASK.fullmatch(name) and value.numel()
        ),
        images=None if pixels is None or pixels.ndim not in (4, 5) else len(pixels),
        per_image=tuple(
            (name, len(value))
            for name, value in tensors.items()
            if _PER_IMAGE.fullmatch(name) and value.ndim == 2
        ),
        blank=pixels is None or not pixels.numel() or bool((pixels == pixels.flatten()[0]).all()),
    )


def _answers(mask: torch.Tensor, labels: torch.Tensor | None) -> tuple[int, int]:
    """(supervised tokens, those of them that are foretold where the mask [B, T, ...] is not 0)."""
    if labels is None or labels.ndim != 2 or mask.ndim < 3 or mask.shape[:2] != labels.shape:
        return 0, 0
    supervised = labels[:, 1:] >= 0
    seeing = (mask != 0).flatten(2).any(dim=-1)[:, :-1]
    return int(supervised.sum()), int((supervised & seeing).sum())


def _grids(tensors: Mapping[str, torch.Tensor]) -> list[Grid]:
    found = []
    for name, value in tensors.items():
        if not _GRID.fullmatch(name) or value.ndim != 2 or value.shape[1] not in (2, 3):
            continue
        videos = name.startswith("video")
        key = "pixel_values_videos" if videos else "pixel_values"
        pixels = tensors.get(key)
        if pixels is not None and pixels.ndim == 2 and not value.is_floating_point():
            wanted = sum(math.prod(map(int, row)) for row in value.tolist())
            found.append(Grid(name, key, len(value), wanted, len(pixels)))
    return found
