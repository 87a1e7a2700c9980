"""The images of single families, where they are not one picture for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ROWS = 2
Images = dict[str, Any]


def pixels(*shape: int, seed: int = 1) -> Tensor:
    """Pixels as a processor gives them: normalised, and other ones for each image."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tiles(config: Any) -> tuple[Images, None]:
    """One tile and its overview for each image (LLaVA-NeXT)."""
    return {"pixel_values": pixels(ROWS, 2, 3, 32, 32), "image_sizes": torch.tensor([[32, 32]] * ROWS)}, None


def _listed(config: Any) -> tuple[Images, None]:
    """A list of images for each row (Idefics)."""
    return {
        "pixel_values": pixels(ROWS, 1, 3, 32, 32),
        "pixel_attention_mask": torch.ones(ROWS, 1, 32, 32, dtype=torch.bool),
    }, None


def _listed_tiles(config: Any) -> tuple[Images, None]:
    size = config.vision_config.image_size
    return {
        "pixel_values": pixels(ROWS, 1, 3, size, size),
        "pixel_attention_mask": torch.ones(ROWS, 1, dtype=torch.bool),
    }, None


def _captioned(config: Any) -> tuple[Images, int]:
    """Without placeholders: the text attends to the image (BLIP, GIT)."""
    return {"pixel_values": pixels(ROWS, 3, 32, 32)}, 0


def _queried(config: Any) -> tuple[Images, int]:
    return {"pixel_values": pixels(ROWS, 3, 32, 32)}, config.num_query_tokens


def _instructed(config: Any) -> tuple[Images, int]:
    ids = torch.randint(5, 100, (ROWS, 4), generator=torch.Generator().manual_seed(2))
    more = {"qformer_input_ids": ids, "qformer_attention_mask": torch.ones_like(ids)}
    return {"pixel_values": pixels(ROWS, 3, 32, 32), **more}, config.num_query_tokens


def _mllama(config: Any) -> tuple[Images, int]:
    return {
        "pixel_values": pixels(ROWS, 1, 1, 3, 32, 32),
        "aspect_ratio_ids": torch.ones(ROWS, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(ROWS, 1, 1, dtype=torch.long),
    }, 1


def _two_sizes(config: Any) -> tuple[Images, None]:
    return {
        "pixel_values": pixels(ROWS, 3, 32, 32),
        "high_res_pixel_values": pixels(ROWS, 3, 64, 64),
    }, None


def _placed(config: Any) -> tuple[Images, None]:
    """Flattened patches with their positions (Gemma 4)."""
    patch, pool = config.vision_config.patch_size, config.vision_config.pooling_kernel_size
    side = 2 * pool
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).reshape(
        -1, 2
    )
    return {
        "pixel_values": pixels(ROWS, side * side, 3 * patch * patch).sigmoid(),
        "image_position_ids": grid.expand(ROWS, -1, -1).contiguous(),
    }, None


def _flat_with_shapes(config: Any) -> tuple[Images, None]:
    patch = config.vision_config.patch_size
    return {
        "pixel_values": pixels(ROWS, 16, 3 * patch * patch),
        "spatial_shapes": torch.tensor([[4, 4]] * ROWS),
        "pixel_attention_mask": torch.ones(ROWS, 16, dtype=torch.long),
    }, None


def _minicpm(config: Any) -> tuple[Images, None]:
    patch = config.vision_config.patch_size
    return {
        "pixel_values": pixels(1, 3, patch, ROWS * 16 * patch),
        "target_sizes": torch.tensor([[4, 4]] * ROWS, dtype=torch.int32),
    }, None


def _unfolded(config: Any) -> tuple[Images, None]:
    """Patches that keep their shape (Kimi, PaddleOCR)."""
    patch = config.vision_config.patch_size
    return {
        "pixel_values": pixels(ROWS * 16, 3, patch, patch),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * ROWS),
    }, None


def _merged_sizes(config: Any) -> tuple[Images, None]:
    patch = config.vision_config.patch_size
    return {
        "pixel_values": pixels(ROWS * 16, 3 * patch * patch),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * ROWS),
        "image_merge_sizes": torch.tensor([2] * ROWS),
    }, None


def _plain(config: Any) -> tuple[Images, None]:
    return {"pixel_values": pixels(ROWS, 3, 32, 32)}, None


def _cross_attended(config: Any) -> tuple[Images, int]:
    """Without placeholders: every row attends to its image (IDEFICS)."""
    return {"pixel_values": pixels(ROWS, 1, 3, 32, 32), "image_attention_mask": 1}, 0


def _shuffled(config: Any) -> tuple[Images, int]:
    return {"pixel_values": pixels(ROWS, 3, 32, 32)}, 4


def _latent(config: Any) -> tuple[Images, int]:
    return {"pixel_values": pixels(ROWS, 3, 32, 32)}, config.latent_query_num


def _rendered(config: Any) -> tuple[Images, int]:
    """Flattened patches behind their row and column (Pix2Struct)."""
    patch = int((config.vision_config.patch_embed_hidden_size // 3) ** 0.5)
    flat = pixels(ROWS, 16, 2 + 3 * patch * patch)
    rows, columns = torch.meshgrid(torch.arange(1, 5), torch.arange(1, 5), indexing="ij")
    flat[..., 0], flat[..., 1] = rows.flatten(), columns.flatten()
    return {"flattened_patches": flat}, 0


def _read(config: Any) -> tuple[Images, int]:
    return {"pixel_values": pixels(ROWS, 3, 32, 32)}, 0


def _fuyu(config: Any) -> tuple[Images, None]:
    return {"image_patches": pixels(ROWS, 4, 3 * config.patch_size**2)}, 4


def _square(size: int) -> Callable[[Any], tuple[Images, None]]:
    return lambda config: ({"pixel_values": pixels(ROWS, 3, size, size)}, None)


# Model type -> (what it takes for images, placeholders for each; None: as many as it makes features).
BATCHES: dict[str, Callable[[Any], tuple[Images, int | None]]] = {
    "blip": _captioned,
    "blip-2": _queried,
    "chameleon": _plain,
    "fuyu": _fuyu,
    "idefics": _cross_attended,
    "kosmos-2": _latent,
    "florence2": _square(128),
    "llama4": _shuffled,
    "pix2struct": _rendered,
    "vision-encoder-decoder": _read,
    "t5gemma2": _plain,
    "deepseek_vl_hybrid": _two_sizes,
    "gemma4": _placed,
    "gemma4_unified": _placed,
    "git": _captioned,
    "granite4_vision": _tiles,
    "granite_docling": _listed_tiles,
    "idefics2": _listed,
    "idefics3": _listed,
    "instructblip": _instructed,
    "kimi_k25": _unfolded,
    "lfm2_vl": _flat_with_shapes,
    "llava_next": _tiles,
    "llava_next_video": _tiles,
    "llava_onevision": _tiles,
    "minicpm_ocr": _minicpm,
    "minicpmv4_6": _minicpm,
    "minicpmv4_7": _minicpm,
    "mllama": _mllama,
    "paddleocr_vl": _unfolded,
    "smolvlm": _listed,
    "video_llama_3": _merged_sizes,
}
