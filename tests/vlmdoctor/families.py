"""Tiny healthy models of many families with hand-made batches: nothing may be found on any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

Made = tuple[Any, dict[str, torch.Tensor]]

LENGTH = 16
IMAGE = 100
TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {**TEXT, "head_dim": 8}
GPT = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
FINE_VISION = {**VISION, "num_hidden_layers": 2, "patch_size": 2}
QWEN_IMAGES = {"image_token_id": IMAGE, "video_token_id": 101, "vision_start_token_id": 102}
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0}

DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**TEXT),
    "qwen2": lambda: transformers.Qwen2Config(**TEXT),
    "qwen3": lambda: transformers.Qwen3Config(**GEMMA),
    "gemma2": lambda: transformers.Gemma2Config(**GEMMA),
    "phi": lambda: transformers.PhiConfig(**TEXT),
    "gpt2": lambda: transformers.GPT2Config(**GPT),
    "gptj": lambda: transformers.GPTJConfig(**GPT, rotary_dim=4),
    "neox": lambda: transformers.GPTNeoXConfig(**TEXT),
    "mixtral": lambda: transformers.MixtralConfig(**TEXT, num_local_experts=4),
}


def decoder(name: str) -> Made:
    """A text model with random tokens."""
    model = transformers.AutoModelForCausalLM.from_config(DECODERS[name]())
    batch = tokens(0)
    return model, batch


def tokens(images: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two rows of random tokens, `images` placeholders after the first one, not supervised."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 90, (2, LENGTH), generator=generator)
    ids[:, 1 : 1 + images] = IMAGE
    labels = ids.masked_fill(ids == IMAGE, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **more}


def pixels(*shape: int) -> torch.Tensor:
    """Random pixels."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def llava() -> Made:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    )
    return transformers.LlavaForConditionalGeneration(config), tokens(4, pixel_values=pixels(2, 3, 8, 8))


def paligemma() -> Made:
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION),
        text_config=transformers.GemmaConfig(**GEMMA),
        image_token_id=IMAGE,
        projection_dim=32,
    )
    batch = tokens(4, pixel_values=pixels(2, 3, 8, 8))
    batch["token_type_ids"] = torch.ones_like(batch["input_ids"])
    return transformers.PaliGemmaForConditionalGeneration(config), batch


def idefics3() -> Made:
    config = transformers.Idefics3Config(
        vision_config=FINE_VISION,
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return transformers.Idefics3ForConditionalGeneration(config), tokens(
        4, pixel_values=pixels(2, 1, 3, 8, 8)
    )


def internvl() -> Made:
    vision = {**FINE_VISION, "image_size": [8, 8], "patch_size": [2, 2]}
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**vision),
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    return transformers.InternVLForConditionalGeneration(config), tokens(4, pixel_values=pixels(2, 3, 8, 8))


def qwen2_vl() -> Made:
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = transformers.Qwen2VLConfig(
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": {**SECTIONS, "mrope_section": [1, 1, 2]}},
        **QWEN_IMAGES,
    )
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    batch = tokens(4, pixel_values=pixels(32, 3 * 2 * 4 * 4), image_grid_thw=grid)
    batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).long()
    return transformers.Qwen2VLForConditionalGeneration(config), batch


VLMS: dict[str, Callable[[], Made]] = {
    "llava": llava,
    "paligemma": paligemma,
    "idefics3": idefics3,
    "internvl": internvl,
    "qwen2_vl": qwen2_vl,
}


def build(name: str) -> Made:
    """The model of a family and its batch, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VLMS[name]() if name in VLMS else decoder(name)
