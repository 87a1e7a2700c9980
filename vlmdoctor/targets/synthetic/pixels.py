"""The image side of a batch, by the mechanism that the forward signature shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from vlmdoctor.knowledge.config_fields import field, kind_of, side, vision_config
from vlmdoctor.targets.synthetic import layouts
from vlmdoctor.targets.synthetic.drawn import Inputs, channels, image_side, pixels, places


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


def grid(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """The Qwen family: patches of all images in one row, and the grid of each image."""
    vision = vision_config(config)
    patch = side(vision, "patch_size", default=14)
    merge = side(vision, "spatial_merge_size", "merge_size", "merge_kernel_size", default=2)
    merge *= side(vision, "adapter_merge_size", default=1)
    frames = int(field(vision, "temporal_patch_size", "patch_temporal", default=1))
    unit = patch * merge
    across = max(1, round((size or 16 * unit) / unit)) * merge
    count = images * rows
    patches = count * across * across
    colours = channels(config)
    key = "image_grid_thw" if "image_grid_thw" in names else "image_grid_hw"
    one = [1, across, across] if key == "image_grid_thw" else [across, across]
    inputs = {key: torch.tensor([one] * count)}
    if kind_of(config) in layouts.UNFLATTENED:
        inputs["pixel_values"] = pixels(patches, colours, patch, patch)
    else:
        inputs["pixel_values"] = pixels(patches, colours * patch * patch * frames)
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
        "pixel_values": pixels(count, across * across, channels(config) * patch * patch),
        "spatial_shapes": torch.tensor([[across, across]] * count),
        "pixel_attention_mask": torch.ones(count, across * across, dtype=torch.long),
    }


def crossed_tiles(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Mllama: tiles per image, reached by cross-attention."""
    vision = vision_config(config)
    tiles = int(field(vision, "max_num_tiles", default=4))
    across = image_side(config, size, 448)
    mask = torch.zeros(rows, images, tiles, dtype=torch.long)
    mask[..., 0] = 1
    return {
        "pixel_values": pixels(rows, images, tiles, channels(config), across, across),
        "aspect_ratio_ids": torch.ones(rows, images, dtype=torch.long),
        "aspect_ratio_mask": mask,
    }


def tiles_by_size(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """The LLaVA-NeXT family: an overview and tiles, as many as the image's size asks for."""
    across = image_side(config, None, 336)
    height = size or across
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    tiles = image_size_to_num_patches([height, height], config.image_grid_pinpoints, across)
    return {
        "pixel_values": pixels(images * rows, int(tiles), channels(config), across, across),
        "image_sizes": torch.tensor([[height, height]] * (images * rows)),
    }


def flattened(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Pix2Struct and Kosmos-2.5: patches with their row and column in front."""
    vision = vision_config(config)
    patch = side(vision, "patch_size", default=16)
    across = math.isqrt(min(64, int(field(vision, "max_num_patches", "seq_len", default=64))))
    where = places(across, across, "ij") + 1
    wide = int(field(vision, "patch_embed_hidden_size", default=3 * patch * patch))
    values = torch.cat([where.float().expand(rows, -1, -1), pixels(rows, len(where), wide)], dim=-1)
    inputs = {"flattened_patches": values}
    if "width" in names:
        inputs |= {"width": torch.full((rows,), across), "height": torch.full((rows,), across)}
    return inputs


def positioned(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Gemma 4: padded rows of patches with the place of each."""
    vision = vision_config(config)
    patch = side(vision, "patch_size", default=16)
    # In the variant without a tower the patches come merged, as large as the model takes them.
    merged = side(vision, "model_patch_size", default=patch)
    pool = 1 if merged != patch else int(field(vision, "pooling_kernel_size", default=1))
    tokens = int(field(vision, "default_output_length", "num_soft_tokens", default=64))
    across = (math.isqrt(tokens) if size is None else max(1, size // (merged * pool))) * pool
    count = images * rows
    where = places(across, across).expand(count, -1, -1).contiguous()
    return {
        "pixel_values": pixels(count, across * across, 3 * merged * merged).sigmoid(),
        "image_position_ids": where,
    }


def per_sample(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Idefics and SmolVLM: images have a dimension of their own beside the batch's."""
    vision = vision_config(config)
    # Neighbouring patches are merged: an image has a whole number of them.
    unit = side(vision, "patch_size", default=14) * int(field(config, "scale_factor", default=1))
    wanted = image_side(config, size)
    across = wanted if kind_of(config) in layouts.TILE_MASKS else max(1, wanted // unit) * unit
    inputs = {"pixel_values": pixels(rows, images, channels(config), across, across)}
    if "pixel_attention_mask" in names:
        tiles = kind_of(config) in layouts.TILE_MASKS
        shape = (rows, images) if tiles else (rows, images, across, across)
        inputs["pixel_attention_mask"] = torch.ones(shape, dtype=torch.bool)
    return inputs


def sized(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Pixtral and Mistral 3: images of any size with their heights and widths."""
    vision = vision_config(config)
    unit = side(vision, "patch_size", default=14) * int(field(config, "spatial_merge_size", default=1))
    across = max(1, (size or min(image_side(config, None), 16 * unit)) // unit) * unit
    return {
        "pixel_values": pixels(images * rows, channels(config), across, across),
        "image_sizes": torch.tensor([[across, across]] * (images * rows)),
    }


def plain(config: Any, names: set[str], images: int, rows: int, size: int | None) -> Inputs:
    """Everything else: images of one size."""
    across = image_side(config, size)
    inputs = {"pixel_values": pixels(rows * images, channels(config), across, across)}
    if "image_sizes" in names and field(config, "vq_config") is not None:
        inputs["image_sizes"] = torch.tensor([[across, across]] * (rows * images))
    return inputs


_Mechanism = Callable[[Any, set[str], int, int, int | None], Inputs]
_Applies = Callable[[set[str], Any], bool]
_MECHANISMS: tuple[tuple[_Mechanism, _Applies], ...] = (
    *((mechanism, layouts.of_kind(kinds)) for mechanism, kinds in layouts.LAYOUTS),
    (grid, lambda names, config: bool(names & {"image_grid_thw", "image_grid_hw"})),
    (packed_patches, lambda names, config: "spatial_shapes" in names),
    (crossed_tiles, lambda names, config: "aspect_ratio_ids" in names),
    (flattened, lambda names, config: "flattened_patches" in names),
    (positioned, lambda names, config: "image_position_ids" in names),
    (layouts.strip, lambda names, config: "target_sizes" in names),
    (layouts.pooled_by_index, lambda names, config: "image_token_pooling" in names),
    (layouts.two_sizes, lambda names, config: "high_res_pixel_values" in names),
    (
        tiles_by_size,
        lambda names, config: "image_sizes" in names and bool(field(config, "image_grid_pinpoints")),
    ),
    (sized, lambda names, config: "image_sizes" in names and hasattr(config, "spatial_merge_size")),
    (per_sample, lambda names, config: bool(names & {"pixel_attention_mask", "image_attention_mask"})),
    (plain, lambda names, config: "pixel_values" in names),
)
