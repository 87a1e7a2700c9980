"""What single families of vision-language models need beyond the general shrinking: a few numbers, other images."""

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


def _mrope(*section: int, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **more}
    return {"text_config": {"rope_parameters": rope}}


_TILES = {"image_grid_pinpoints": [[32, 32]]}
_GLM = _mrope(1, 1, 2, partial_rotary_factor=0.5)
# The image "words" spell their number in letters: IMGIMGBAZ is number 10.
_CHAMELEON_WORDS = {"<image>": 200} | {
    "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(i)) + "Z": 205 + i for i in range(50)
}
_SIGHT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "patch_size": 8,
}
_MINICPM = {"image_token_id": 200, "insert_layer_id": 0, "vision_config": {"insert_layer_id": 0}}
# Features of two vision layers go into the first two text layers: what is added behind the last is lost.
_DEEP = {"text_config": {"num_hidden_layers": 3, "layer_types": None}}
_SPARSE = {"num_key_value_heads": 4}

# Changes to the shrunk default config, by model type.
OVERRIDES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "blip-2": {"image_token_index": 200},
    "blip": {"text_config": {"label_smoothing": 0.0}},
    "chameleon": {"vq_config": {"num_res_blocks": 1, "channel_multiplier": [1, 2], "num_embeddings": 50}, "vocabulary_map": _CHAMELEON_WORDS},
    "cohere_compass": {"text_config": {"rope_parameters": None}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "cosmos3_omni": _DEEP,
    "granite_docling": _DEEP,
    "qwen3_vl": _DEEP,
    "qwen3_vl_moe": _DEEP,
    "deepseek_v2": {"num_experts_per_tok": 2, "num_key_value_heads": 4, "head_dim": 8},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "deepseek_v32": {"num_key_value_heads": 4, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"image_size": 64}},
    "ernie4_5_vl_moe": {"text_config": {**_mrope(2, 2, 4)["text_config"], "num_hidden_layers": 3, "mlp_layer_types": None}},
    "fuyu": {"patch_size": 8, "image_size": 16},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma4": {"vision_config": {"model_type": "gemma4_vision", **_SIGHT, "pooling_kernel_size": 2, "position_embedding_size": 32}},
    "gemma4_unified": {"vision_config": {"model_type": "gemma4_unified_vision"}},
    "gemma3n": {"text_config": {"intermediate_size": 96, "activation_sparsity_pattern": None, "layer_types": None}},
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm4v_moe": _mrope(1, 1, 2, partial_rotary_factor=0.5),
    "glm_ocr": _GLM,
    "glmga": _GLM,
    "glm5_next": {"text_config": _SPARSE},
    "dots3_note": {"text_config": _SPARSE},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0], [-2, 1]], "spatial_target_layers": [0, 0, 1, 1], **_TILES},
    "hunyuan_vl": {"text_config": {"head_dim": 16, **_mrope(2, 2, 2, 2)["text_config"]}},
    "instructblip": {"image_token_index": 200},
    "instructblipvideo": {"video_token_index": 200},
    "llama4": {"vision_config": {"intermediate_size": 256}},
    "kosmos-2": {"vision_config": {"num_hidden_layers": 2}},
    "llava_next": _TILES,
    "llava_next_video": _TILES,
    "llava_onevision": _TILES,
    "minicpm_ocr": {**_MINICPM, "downsample_mode": "16x"},
    "minicpmv4_6": _MINICPM,
    "minicpmv4_7": _MINICPM,
    "mistral_large4": {"text_config": {"num_key_value_heads": 4}},
    "mllama": {
        "text_config": {"cross_attention_layers": [1]},
        "vision_config": {
            "intermediate_layers_indices": [0],
            "num_global_layers": 1,
            "vision_output_dim": 128,
            "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
        },
    },
    "muse_glimmer": {"out_hidden_size": 256, "projector_hidden_size": 64},
    "kimi_k25": {"text_config": {"num_key_value_heads": 4}},
    "t5gemma2": {"encoder": {"mm_tokens_per_image": 4}},
    "vision-encoder-decoder": {
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
        "decoder": {"is_decoder": True, "add_cross_attention": True},
    },
    "paddleocr_vl": _mrope(2, 3, 3),
    "pix2struct": {"vision_config": {"seq_len": 16, "patch_embed_hidden_size": 192}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 210, "vision_end_token_id": 211, **_mrope(2, 3, 3)},
    "qwen2_5_vl": _mrope(2, 3, 3),
    "qwen2_vl": _mrope(2, 3, 3),
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 210, "vision_end_token_id": 211, **_DEEP},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "step3p7": {"text_config": {"sliding_window": 32}},
    "vipllava": {"vision_feature_layers": [-1, -2], "vision_config": {"num_hidden_layers": 3}},
}  # fmt: skip


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

# Towers of what the batch does not hold, frozen as their training scripts freeze them.
FROZEN: dict[str, str] = {
    "granite_docling": "vision_model.connector.fine",
    "qwen2_5_omni_thinker": "audio_tower",
    "qwen3_omni_moe_thinker": "audio_tower",
    "video_llava": "video_tower",
}
