"""What a batch says about its images beside the pixels: grids, sizes and masks, compared with each other.

Shapes:
    N images, P patches of all images, D numbers in a patch, B rows, H height, W width
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.image_inputs import Grid, ImageInputs, Mask
from vlmdoctor.subject import Subject

_GRID = re.compile(r"(image|video)_grid_(thw|hws?)|(image|video)_grids?|grid_(thw|hws?)")
_PIXEL_MASK = re.compile(
    r"(pixel|image|img|patch|vision|cross)_?(attention)?_?(attn)?_?mask|image_attention_mask"
)
_PER_IMAGE = re.compile(r"image_sizes|original_sizes|images_spatial_crop|spatial_shapes")


def probe(subject: Subject, gather: Callable[[type], Any]) -> ImageInputs:
    """Reads the batch's keys, and runs nothing."""
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
            _mask(name, value, tensors.get("labels"))
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


def _mask(name: str, mask: torch.Tensor, labels: torch.Tensor | None) -> Mask:
    answers, seeing = _answers(mask, labels)
    kept = int((mask != 0).sum())
    return Mask(name=name, shape=tuple(mask.shape), kept=kept, answers=answers, answers_seeing=seeing)


def _answers(mask: torch.Tensor, labels: torch.Tensor | None) -> tuple[int, int]:
    """(supervised tokens, those of them that are predicted where the mask [B, T, ...] is not 0)."""
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
            found.append(Grid(name=name, pixels=key, grids=len(value), wanted=wanted, patches=len(pixels)))
    return found
