"""Default configurations that can be built and run: what transformers leaves open in them is filled in.

The values are those of the family's published checkpoints where the default has none.
"""

from __future__ import annotations

from typing import Any

from vlmdoctor.targets.synthetic.consistent import consistent

_FULL = {"rope_type": "default", "rope_theta": 10000.0}
_HALF_ROTATED = {**_FULL, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}
_SIGLIP = {"hidden_size": 1152, "num_attention_heads": 16}
_IMAGE = 200


def _letters(number: int) -> str:
    """A number in letters, as Chameleon's vocabulary spells it: 10 is BA."""
    return "".join(chr(ord("A") + int(digit)) for digit in str(number))


def _chameleon() -> dict[str, int]:
    words = {f"IMGIMG{_letters(number)}Z": 300 + number for number in range(8192)}
    return {"<image>": _IMAGE, **words}


def _emu3() -> dict[str, int]:
    words = {f"<|visual token {number:06d}|>": 151854 + number for number in range(32768)}
    return {"<image>": _IMAGE, "<|extra_200|>": _IMAGE + 1, **words}


# Changes to the default configuration, by model type.
_CHANGES: dict[str, Any] = {
    "aya_vision": lambda: {"vision_config": {"model_type": "siglip_vision_model", **_SIGLIP}},
    "chameleon": lambda: {"vocabulary_map": _chameleon()},
    "cohere_compass": lambda: {"text_config": {"rope_parameters": {"full_attention": _FULL}}},
    "deepseek_ocr2": lambda: {
        "text_config": {
            "mlp_layer_types": ["dense"] + ["sparse"] * 11,
            "num_hidden_layers": 12,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 896,
        },
        "vision_config": {
            "encoder_config": {
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
            }
        },
    },
    "diffusion_gemma": lambda: {
        "text_config": {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
    },
    "emu3": lambda: {"vocabulary_map": _emu3()},
    "gemma4": lambda: {"vision_config": {"model_type": "gemma4_vision"}},
    "gemma4_unified": lambda: {"vision_config": {"model_type": "gemma4_unified_vision"}},
    "glm4v": lambda: {"text_config": {"rope_parameters": _HALF_ROTATED}},
    "glm46v": lambda: {"text_config": {"rope_parameters": _HALF_ROTATED}},
    "glmga": lambda: {"text_config": {"rope_parameters": _HALF_ROTATED}},
    "granite4_vision": lambda: {
        "deepstack_layer_map": [[-2, 9], [-8, 6]],
        "vision_feature_select_strategy": "full",
        "downsample_rate": "4/8",
        "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768]],
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 384, **_SIGLIP},
    },
    "hunyuan_vl": lambda: {
        "text_config": {"head_dim": 128, "rope_parameters": {**_FULL, "mrope_section": [16, 16, 16, 16]}}
    },
    "udop": lambda: {"decoder_start_token_id": 0},
    "vision-encoder-decoder": lambda: {"pad_token_id": 0, "decoder_start_token_id": 1},
    "molmo2": lambda: {"adapter_config": {"text_hidden_size": 4096}},
    "qwen2_5_omni_thinker": lambda: {"vision_start_token_id": 151652, "vision_end_token_id": 151653},
    "qwen3_omni_moe_thinker": lambda: {
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "text_config": {"head_dim": 128},
    },
    "step3p7": lambda: {"text_config": {"sliding_window": 512}},
    "qwen4_exp": lambda: {
        "text_config": {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 256,
            "indexer_budget": 2048,
            "indexer_compress_ratio": 16,
        }
    },
    "ovis2": lambda: {"hidden_size": 4096},
    "llama4": lambda: {"vision_config": {"hidden_size": 1408, "vision_output_dim": 4096}},
    "glm4v_moe": lambda: {"text_config": {"rope_parameters": _HALF_ROTATED, "head_dim": 128}},
}


def default_config(model_type: str) -> Any:
    """A configuration of `model_type` that can be built, at the full size of its default.

    Raises:
        Exception: What transformers raises where the type has no such configuration.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    changes = _CHANGES.get(model_type, dict)()
    return consistent(CONFIG_MAPPING[model_type](**changes))
