"""What single families need beyond the general shrinking."""

from __future__ import annotations

from typing import Any

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _mrope(*section: int, **more: Any) -> dict[str, Any]:
    rope = {**_ROPE, "mrope_section": list(section), **more}
    return {"text_config": {"rope_parameters": rope}}


_TILES = {"image_grid_pinpoints": [[32, 32]]}
_GLM = _mrope(1, 1, 2, partial_rotary_factor=0.5)
# The image "words" spell their number in letters: IMGIMGBAZ is number 10.
_CHAMELEON_WORDS = {"<image>": 200} | {
    "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(i)) + "Z": 205 + i for i in range(50)
}
_EMU_WORDS = {"<image>": 200, "<|extra_200|>": 201} | {
    f"<|visual token {i:06d}|>": 202 + i for i in range(50)
}
_MINICPM = {"image_token_id": 200, "insert_layer_id": 0}
# Features of two vision layers go into the first two text layers: what is added behind the last is lost.
_DEEP = {"text_config": {"num_hidden_layers": 3}}
_SPARSE = {"num_key_value_heads": 4}
# What layers with a sliding window have instead.
_SLIDING = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16}
_SLIDING |= {"swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 16}

# Changes to the shrunk default config, by model type.
OVERRIDES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "blip-2": {"image_token_index": 200},
    "chameleon": {
        "image_token_id": 200,
        "vq_config": {"num_res_blocks": 1, "channel_multiplier": [1, 2], "num_embeddings": 50},
        "vocabulary_map": _CHAMELEON_WORDS,
    },
    "cohere_compass": {"text_config": {"num_hidden_layers": 3, "layer_types": None}},
    "cosmos3_omni": _DEEP,
    "granite_docling": _DEEP,
    "qwen3_vl": _DEEP,
    "qwen3_vl_moe": _DEEP,
    "deepseek_v2": {"num_experts_per_tok": 2, "num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "deepseek_v32": {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"image_size": 64}},
    "emu3": {
        "image_token_id": 200,
        "vq_config": {"num_res_blocks": 1, "channel_multiplier": [1, 2], "codebook_size": 50},
        "vocabulary_map": _EMU_WORDS,
    },
    "ernie4_5_vl_moe": {
        "text_config": {**_mrope(2, 2, 4)["text_config"], "num_hidden_layers": 3, "mlp_layer_types": None}
    },
    "fuyu": {"image_size": 16},
    "gemma4": {"vision_config": {"pooling_kernel_size": 2, "position_embedding_size": 32}},
    "gemma4_unified": {
        "text_config": {"global_head_dim": 16},
        "vision_config": {
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "mm_posemb_size": 16,
            "output_proj_dims": 64,
        },
    },
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm4v_moe": _mrope(1, 1, 2, partial_rotary_factor=0.5),
    "glm_ocr": _GLM,
    "glmga": _GLM,
    "glm5_next": {"text_config": _SPARSE},
    "dots3_note": {"text_config": {**_SPARSE, **_SLIDING}},
    "granite4_vision": {
        "text_config": {"num_hidden_layers": 7},
        "deepstack_layer_map": [[-1, 0], [-2, 1]],
        "spatial_target_layers": [2, 3, 4, 5],
        "downsample_rate": "2/4",
        **_TILES,
    },
    "instructblip": {"image_token_index": 200},
    "instructblipvideo": {"video_token_index": 200},
    "llama4": {"vision_config": {"intermediate_size": 256}},
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
    "molmo2": {
        "text_config": {"additional_vocab_size": 16},
        "vision_config": {"num_position_embeddings": None},
    },
    "muse_spark": {
        "audio_config": {"num_hidden_layers": 4, "hidden_sizes": [8, 8, 8, 8]},
        "out_hidden_size": 256,
    },
    "muse_glimmer": {"out_hidden_size": 256},
    "kimi_k25": {"text_config": {"num_key_value_heads": 4, "head_dim": 8, "n_group": 1, "topk_group": 1}},
    "vision-encoder-decoder": {
        "pad_token_id": 0,
        "decoder": {"is_decoder": True, "add_cross_attention": True},
    },
    "nemotron_h_omni": {"vision_config": {"max_img_size": 64}},
    "paddleocr_vl": _mrope(2, 3, 3),
    "pix2struct": {"vision_config": {"seq_len": 16, "patch_embed_hidden_size": 192}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 210, "vision_end_token_id": 211, **_mrope(2, 3, 3)},
    "qwen2_5_vl": _mrope(2, 3, 3),
    "qwen2_vl": _mrope(2, 3, 3),
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 210, "vision_end_token_id": 211, **_DEEP},
    "vipllava": {"vision_feature_layers": [-1, -2], "vision_config": {"num_hidden_layers": 3}},
}

# Families without a healthy case, and why.
NOT_BUILT: dict[str, str] = {
    **dict.fromkeys(("fast_vlm", "gemma3n", "perception_lm"), "its vision tower comes from timm"),
    "diffusion_gemma": "transformers computes no loss for it",
}

# What the batch has no use for: towers of what it does not hold, frozen as their training scripts freeze
# them; tables for images of other sizes; what a shared class makes twice.
FROZEN: dict[str, str] = {
    "deepseek_ocr2": "query_1024_resolution",
    "dots3_note": "audio_tower",
    "granite_docling": "vision_model.connector.fine",
    "inkling_mm_model": "audio_tower",
    "muse_spark": "audio_tower",
    "nemotron_h_omni": "video_patch_projection",
    "pi0": "dit.embed_tokens",
    "qwen2_5_omni_thinker": "audio_tower",
    "qwen3_omni_moe_thinker": "audio_tower",
    "udop": "decoder.embed_patches",
    "video_llava": "video_tower",
}
