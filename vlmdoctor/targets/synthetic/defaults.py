"""Default configurations that can be built and run: what transformers leaves open in them is filled in.

The values are those of the family's published checkpoints where the default has none.
"""

from __future__ import annotations

from typing import Any

from vlmdoctor.targets.synthetic.consistent import consistent

_FULL = {"rope_type": "default", "rope_theta": 10000.0}
_HALF_ROTATED = {**_FULL, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}
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
    "aya_vision": lambda: {"vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 16}},
    "chameleon": lambda: {"vocabulary_map": _chameleon()},
    "cohere_compass": lambda: {"text_config": {"rope_parameters": {"full_attention": _FULL}}},
    "deepseek_ocr2": lambda: {
        "text_config": {"mlp_layer_types": ["dense"] + ["sparse"] * 11, "num_hidden_layers": 12},
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
    "granite4_vision": lambda: {"deepstack_layer_map": [[-2, 9], [-8, 6]], "downsample_rate": "4/8"},
    "hunyuan_vl": lambda: {
        "text_config": {"head_dim": 128, "rope_parameters": {**_FULL, "mrope_section": [16, 16, 16, 16]}}
    },
    "molmo2": lambda: {"adapter_config": {"text_hidden_size": 4096}},
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
