"""Images of families that lay them out in a way of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from vlmdoctor.knowledge.config_fields import field, kind_of, side, vision_config
from vlmdoctor.targets.synthetic.drawn import Inputs, channels, image_side, pixels

# These embed each patch by a convolution, and take it as an image.
UNFLATTENED = {"kimi_k25", "paddleocr_vl"}
# These mark whole tiles or cameras as padding, not pixels.
TILE_MASKS = {"granite_docling", "pi0"}


def strip(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """MiniCPM-V: all images one behind another in a strip as high as a patch, and the grid of each."""
    patch = side(vision_config(config), "patch_size", default=14)
    across = max(1, (size or 16 * patch) // (4 * patch)) * 4
    count = images * rows
    return {
        "pixel_values": pixels(1, channels(config), patch, count * across * across * patch),
        "target_sizes": torch.tensor([[across, across]] * count, dtype=torch.int32),
    }


def pooled_by_index(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Molmo 2: crops of flattened patches, and for each token of text the patches that it pools."""
    vision = vision_config(config)
    patch = side(vision, "patch_size", default=14)
    across, pool, count = image_side(config, None, 378) // patch, 2, images * rows
    padded = math.ceil(across / pool) * pool
    index = torch.full((padded, padded), -1)
    index[:across, :across] = torch.arange(across * across).reshape(across, across)
    cells = padded // pool
    one = index.reshape(cells, pool, cells, pool).transpose(1, 2).reshape(cells * cells, pool * pool)
    # Each image is one crop and its overview; both are pooled alike.
    crops = torch.arange(2 * count)[:, None, None] * across * across
    pooling = torch.where(one >= 0, one + crops, -1).reshape(-1, pool * pool)
    return {
        "pixel_values": pixels(2 * count, across * across, channels(config) * patch * patch),
        "image_token_pooling": pooling,
        "image_grids": torch.tensor([[cells] * 4] * count),
        "image_num_crops": torch.full((count,), 2),
    }


def two_sizes(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """DeepSeek-VL hybrid: every image twice, the second time for the tower that sees it in detail."""
    across, fine = image_side(config, size), image_side(field(config, "high_res_vision_config"), None, 1024)
    count, colours = images * rows, channels(config)
    return {
        "pixel_values": pixels(count, colours, across, across),
        "high_res_pixel_values": pixels(count, colours, fine, fine),
    }


def words_of_pixels(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Fuyu: flattened patches, which the text takes as they are."""
    patch = side(config, "patch_size", default=30)
    across = max(1, image_side(config, size, 300) // patch)
    key = "image_patches" if "image_patches" in names else "pixel_values"
    return {key: pixels(rows, images * across * across, channels(config) * patch * patch)}


def folded_patches(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Inkling: patches with their frames and colours, a token each."""
    vision = vision_config(config)
    patch, frames = side(vision, "patch_size", default=40), side(vision, "temporal_patch_size", default=2)
    count = images * rows * max(1, (size or 8 * patch) // patch) ** 2
    return {"pixel_values": pixels(count, frames, patch, patch, channels(config))}


def merged_patches(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Inkling 2: blocks of merged patches, and the grid of each image in blocks."""
    vision = vision_config(config)
    block = side(vision, "patch_size", default=20) * side(vision, "spatial_merge_size", default=2)
    across = max(1, (size or 16 * block) // block)
    count = images * rows
    return {
        "pixel_values": pixels(count * across * across, block, block, channels(config)),
        "image_grid_thw": torch.tensor([[1, across, across]] * count),
    }


def frames(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """InstructBLIP-Video: one clip of four frames for each text."""
    across = image_side(config, size)
    return {"pixel_values": pixels(rows, 4 * images, channels(config), across, across)}


def counted_patches(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Aria: images of the sizes that its projector has queries for."""
    patch = side(vision_config(config), "patch_size", default=14)
    across = math.isqrt(min(int(count) for count in config.projector_patch_to_query_dict)) * patch
    return {"pixel_values": pixels(images * rows, channels(config), across, across)}


LAYOUTS = (
    (words_of_pixels, {"fuyu"}),
    (folded_patches, {"inkling", "inkling_mm_model"}),
    (merged_patches, {"inkling2"}),
    (frames, {"instructblipvideo"}),
    (counted_patches, {"aria"}),
)


def of_kind(kinds: set[str]) -> Callable[[set[str], Any], bool]:
    """Whether a configuration is of one of `kinds`."""
    return lambda names, config: kind_of(config) in kinds
