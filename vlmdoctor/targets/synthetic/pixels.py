"""The image side of a batch, by the mechanism that the forward signature shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from vlmdoctor.targets.synthetic.fields import field, side, vision_config

# Pixels are real: a gigabyte of them is no batch that anybody means.
_MOST_NUMBERS = 1 << 28

Inputs = dict[str, torch.Tensor]


def image_inputs(config: Any, names: set[str], images: int, rows: int, size: int | None = None) -> Inputs:
    """Pixels and what goes with them for `images` images in each of `rows` samples.

    Args:
        config: The model's configuration.
        names: Parameters of the model's forward.
        size: Height and width of an image in pixels; by default what the configuration suggests.
    """
    if images == 0:
        return {}
    for mechanism, applies in _MECHANISMS:
        if applies(names, config):
            return mechanism(config, names, images, rows, size)
    return {}


def _pixels(*shape: int) -> torch.Tensor:
    if not 0 < math.prod(shape) <= _MOST_NUMBERS:
        raise ValueError(f"the images would have the shape {list(shape)}")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _channels(config: Any) -> int:
    return int(field(vision_config(config), "in_channels", "num_channels", "in_chans", default=3))


def _size(config: Any, size: int | None, default: int = 224) -> int:
    vision = vision_config(config)
    return size or side(vision, "image_size", default=side(config, "image_size", default=default))


def grid(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Qwen and its kin: patches of all images in one row, and the grid of each image."""
    vision = vision_config(config)
    patch = side(vision, "patch_size", default=14)
    merge = side(vision, "spatial_merge_size", "merge_size", "merge_kernel_size", default=2)
    merge *= side(vision, "adapter_merge_size", default=1)
    frames = int(field(vision, "temporal_patch_size", "patch_temporal", default=1))
    unit = patch * merge
    across = max(1, round((size or 16 * unit) / unit)) * merge
    count = images * rows
    patches = count * across * across
    wide = _channels(config) * patch * patch * frames
    key = "image_grid_thw" if "image_grid_thw" in names else "image_grid_hw"
    one = [1, across, across] if key == "image_grid_thw" else [across, across]
    inputs = {key: torch.tensor([one] * count)}
    if type(config).__name__.startswith(("KimiK25", "PaddleOCR", "Kimi_K25")):
        # These embed each patch by a convolution, and take it as an image.
        inputs["pixel_values"] = _pixels(patches, _channels(config), patch, patch)
    else:
        inputs["pixel_values"] = _pixels(patches, wide)
    if "image_merge_sizes" in names:
        inputs["image_merge_sizes"] = torch.tensor([merge] * count)
    return inputs


def packed_patches(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """LFM2-VL: every image a padded row of patches, with its height and width in patches."""
    vision = vision_config(config)
    patch = side(vision, "patch_size", default=16)
    across = math.isqrt(int(field(vision, "num_patches", default=256))) if size is None else size // patch
    count = images * rows
    return {
        "pixel_values": _pixels(count, across * across, _channels(config) * patch * patch),
        "spatial_shapes": torch.tensor([[across, across]] * count),
        "pixel_attention_mask": torch.ones(count, across * across, dtype=torch.long),
    }


def crossed_tiles(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Mllama: tiles per image, reached by cross-attention."""
    vision = vision_config(config)
    tiles = int(field(vision, "max_num_tiles", default=4))
    across = _size(config, size, 448)
    mask = torch.zeros(rows, images, tiles, dtype=torch.long)
    mask[..., 0] = 1
    return {
        "pixel_values": _pixels(rows, images, tiles, _channels(config), across, across),
        "aspect_ratio_ids": torch.ones(rows, images, dtype=torch.long),
        "aspect_ratio_mask": mask,
    }


def tiles_by_size(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """LLaVA-NeXT and its kin: an overview and tiles, as many as the image's size asks for."""
    across = _size(config, None, 336)
    height = size or across
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    tiles = image_size_to_num_patches([height, height], config.image_grid_pinpoints, across)
    return {
        "pixel_values": _pixels(images * rows, int(tiles), _channels(config), across, across),
        "image_sizes": torch.tensor([[height, height]] * (images * rows)),
    }


def flattened(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Pix2Struct and Kosmos-2.5: patches with their row and column in front."""
    vision = vision_config(config)
    patch = side(vision, "patch_size", default=16)
    count = min(64, int(field(vision, "max_num_patches", "seq_len", default=64)))
    across = math.isqrt(count)
    places = torch.stack(
        torch.meshgrid(torch.arange(1, across + 1), torch.arange(1, across + 1), indexing="ij"), dim=-1
    ).reshape(-1, 2)
    wide = int(field(vision, "patch_embed_hidden_size", default=3 * patch * patch))
    values = torch.cat([places.float(), _pixels(len(places), wide)], dim=-1)
    inputs = {"flattened_patches": values.expand(rows, -1, -1).contiguous()}
    if "width" in names:
        inputs |= {"width": torch.full((rows,), across), "height": torch.full((rows,), across)}
    return inputs


def positioned(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Gemma 4: padded rows of patches with the place of each."""
    vision = vision_config(config)
    patch = side(vision, "patch_size", default=16)
    pool = int(field(vision, "pooling_kernel_size", default=1))
    tokens = int(field(vision, "default_output_length", "num_soft_tokens", default=64))
    across = math.isqrt(tokens) * pool
    places = torch.stack(torch.meshgrid(torch.arange(across), torch.arange(across), indexing="xy"), -1)
    count = images * rows
    patch *= int(field(vision, "model_patch_size", default=patch)) // patch
    return {
        "pixel_values": _pixels(count, across * across, 3 * patch * patch),
        "image_position_ids": places.reshape(1, -1, 2).expand(count, -1, -1).contiguous(),
    }


def per_sample(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Idefics and SmolVLM: images have a dimension of their own beside the batch's."""
    across = _size(config, size)
    inputs = {"pixel_values": _pixels(rows, images, _channels(config), across, across)}
    if "pixel_attention_mask" in names and type(config).__name__ != "PI0Config":
        inputs["pixel_attention_mask"] = torch.ones(rows, images, across, across, dtype=torch.long)
    if "pixel_attention_mask" in names and type(config).__name__ == "PI0Config":
        inputs["pixel_attention_mask"] = torch.ones(rows, images, dtype=torch.bool)
    return inputs


def sized(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Pixtral and Mistral 3: images of any size with their heights and widths."""
    vision = vision_config(config)
    unit = side(vision, "patch_size", default=14) * int(field(config, "spatial_merge_size", default=1))
    across = max(1, (size or min(_size(config, None), 16 * unit)) // unit) * unit
    return {
        "pixel_values": _pixels(images * rows, _channels(config), across, across),
        "image_sizes": torch.tensor([[across, across]] * (images * rows)),
    }


def plain(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Everything else: images of one size."""
    across = _size(config, size)
    # A model without placeholders sees one image with each text.
    count = rows * images
    return {"pixel_values": _pixels(count, _channels(config), across, across)}


_Applies = Callable[[set[str], Any], bool]
_MECHANISMS: tuple[tuple[Callable[..., Inputs], _Applies], ...] = (
    (grid, lambda names, config: bool(names & {"image_grid_thw", "image_grid_hw"})),
    (packed_patches, lambda names, config: "spatial_shapes" in names),
    (crossed_tiles, lambda names, config: "aspect_ratio_ids" in names),
    (flattened, lambda names, config: "flattened_patches" in names),
    (positioned, lambda names, config: "image_position_ids" in names),
    (
        tiles_by_size,
        lambda names, config: "image_sizes" in names and bool(field(config, "image_grid_pinpoints")),
    ),
    (sized, lambda names, config: "image_sizes" in names and hasattr(config, "spatial_merge_size")),
    (per_sample, lambda names, config: bool(names & {"pixel_attention_mask", "image_attention_mask"})),
    (plain, lambda names, config: "pixel_values" in names),
)
