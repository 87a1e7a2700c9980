"""What single families need beyond the general shrinking."""

from __future__ import annotations

from typing import Any


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
    "chameleon": {
        "vq_config": {"num_res_blocks": 1, "channel_multiplier": [1, 2], "num_embeddings": 50},
        "vocabulary_map": _CHAMELEON_WORDS,
    },
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
    "ernie4_5_vl_moe": {
        "text_config": {**_mrope(2, 2, 4)["text_config"], "num_hidden_layers": 3, "mlp_layer_types": None}
    },
    "fuyu": {"patch_size": 8, "image_size": 16},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma4": {
        "vision_config": {
            "model_type": "gemma4_vision",
            **_SIGHT,
            "pooling_kernel_size": 2,
            "position_embedding_size": 32,
        }
    },
    "gemma4_unified": {"vision_config": {"model_type": "gemma4_unified_vision"}},
    "gemma3n": {
        "text_config": {"intermediate_size": 96, "activation_sparsity_pattern": None, "layer_types": None}
    },
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm4v_moe": _mrope(1, 1, 2, partial_rotary_factor=0.5),
    "glm_ocr": _GLM,
    "glmga": _GLM,
    "glm5_next": {"text_config": _SPARSE},
    "dots3_note": {"text_config": _SPARSE},
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0], [-2, 1]],
        "spatial_target_layers": [0, 0, 1, 1],
        **_TILES,
    },
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
}


# Towers of what the batch does not hold, frozen as their training scripts freeze them.
FROZEN: dict[str, str] = {
    "granite_docling": "vision_model.connector.fine",
    "qwen2_5_omni_thinker": "audio_tower",
    "qwen3_omni_moe_thinker": "audio_tower",
    "video_llava": "video_tower",
}
