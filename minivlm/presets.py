"""The sizes that come with minivlm, without importing torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minivlm.errors import UserError


@dataclass(frozen=True)
class Preset:
    """A named size.

    Attributes:
        name: What `--preset` takes.
        summary: One line about it.
        model: Fields of `MiniVLMConfig`.
        training: Fields of `TrainConfig` that suit it, where the user says nothing.
    """

    name: str
    summary: str
    model: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)


_TINY = {
    "vocab_size": 680,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 512,
    "vision_kind": "conv_vit",
    "image_size": 32,
    "patch_size": 8,
    "vision_hidden_size": 64,
    "vision_intermediate_size": 128,
    "vision_num_hidden_layers": 2,
    "vision_num_attention_heads": 4,
    "projector": "mlp",
}
_CLIP_B16 = {
    "vision_kind": "clip",
    "image_size": 224,
    "patch_size": 16,
    "vision_hidden_size": 768,
    "vision_intermediate_size": 3072,
    "vision_num_hidden_layers": 12,
    "vision_num_attention_heads": 12,
}
_SIGLIP2_B32 = {**_CLIP_B16, "vision_kind": "siglip", "image_size": 256, "patch_size": 32}
_MINIMIND = {
    "vocab_size": 6400,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "max_position_embeddings": 8192,
}
_TINY_TRAINING = {"lr": 2e-3, "batch_size": 32, "steps": 1500, "threads": 1}
_LARGE_TRAINING = {
    "lr": 4e-4,
    "batch_size": 16,
    "trainable": "frozen-vision",
    "warmup": 200,
    "max_length": 1024,
}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("tiny", "0.3M parameters; learns to read on two CPU cores in minutes", _TINY, _TINY_TRAINING),
        Preset(
            "tiny8",
            "tiny with 8 decoder layers",
            {**_TINY, "num_hidden_layers": 8},
            {**_TINY_TRAINING, "lr": 1e-3, "steps": 2000},
        ),
        Preset(
            "colab",
            "hidden 320, 10 heads of 32, 8 layers: the size of a first rebuild in Colab",
            {
                **_TINY,
                "hidden_size": 320,
                "intermediate_size": 864,
                "num_hidden_layers": 8,
                "num_attention_heads": 10,
                "head_dim": 32,
            },
            {"lr": 5e-4},
        ),
        Preset(
            "minimind-v",
            "MiniMind-V: 26M parameters behind CLIP ViT-B/16, 196 image tokens",
            {
                **_MINIMIND,
                **_CLIP_B16,
                "hidden_size": 512,
                "num_key_value_heads": 2,
                "intermediate_size": 1408,
                "projector": "linear",
            },
            _LARGE_TRAINING,
        ),
        Preset(
            "minimind-3v",
            "MiniMind-3V: 65M parameters behind SigLIP2-B/32, 64 image tokens",
            {
                **_MINIMIND,
                **_SIGLIP2_B32,
                "hidden_size": 768,
                "num_key_value_heads": 4,
                "intermediate_size": 2432,
                "qk_norm": True,
                "rms_norm_eps": 1e-6,
                "projector": "layernorm_mlp",
            },
            _LARGE_TRAINING,
        ),
        Preset(
            "base",
            "about 100M parameters behind SigLIP2-B/32",
            {
                **_MINIMIND,
                **_SIGLIP2_B32,
                "hidden_size": 768,
                "num_hidden_layers": 13,
                "num_attention_heads": 12,
                "num_key_value_heads": 4,
                "intermediate_size": 2432,
                "qk_norm": True,
                "projector": "layernorm_mlp",
            },
            _LARGE_TRAINING,
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of this name; raises `UserError` with a suggestion where there is none."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"it is one of {', '.join(PRESETS)}."
    raise UserError(f"there is no preset '{name}'; {hint}")
