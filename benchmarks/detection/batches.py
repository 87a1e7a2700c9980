"""A consistent batch for any small model of `transformers`: two rows with an image, answers supervised."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.detection.images import BATCHES, ROWS, pixels
from benchmarks.detection.shrink import FIRST_TOKEN

Batch = dict[str, Any]
UNNAMED = 200  # a placeholder where the configuration names none
PROMPT, ANSWER, IGNORED = 6, 5, -100
_IMAGE_TOKENS = ("image_token_id", "image_token_index", "image_patch_id", "media_placeholder_token_id")
_START_TOKENS = ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index")
_END_TOKENS = ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index")


def vlm_batch(model: nn.Module) -> Batch:
    """Images as the family takes them, and as many placeholders in the text as the model makes features."""
    kind = model.config.model_type
    parameters = inspect.signature(model.forward).parameters
    images: Batch = {}
    tokens = None
    if kind in BATCHES:
        images, tokens = BATCHES[kind](model.config)
    elif "image_grid_thw" in parameters:
        images = packed_patches(model.config)
    else:
        size = _first(_vision(model.config), "image_size")
        size = size[0] if isinstance(size, list | tuple) else size
        images = {"pixel_values": pixels(ROWS, 3, size, size)}
        if "image_sizes" in _asked_for(model):
            images["image_sizes"] = torch.tensor([[size, size]] * ROWS)
    if tokens is None:
        tokens = features_of(model, images) // ROWS
    batch = text_batch(model.config, tokens) | images
    if "image_embeds_position_mask" in parameters:
        batch["image_embeds_position_mask"] = batch["input_ids"] == placeholder(model.config)
    if "image_attention_mask" in images:
        batch["image_attention_mask"] = torch.ones(*batch["input_ids"].shape, 1, dtype=torch.long)
    if "decoder_input_ids" in parameters and getattr(model.config, "is_encoder_decoder", False):
        batch["labels"] = batch["input_ids"][:, -ANSWER - 1 :].clone()
        batch = {name: value for name, value in batch.items() if name in parameters}
    if kind == "paligemma":  # what is in front of the answer is seen both ways
        batch["token_type_ids"] = (batch["labels"] != IGNORED).long()
        return batch
    for name in {"mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids"} & set(parameters):
        batch[name] = (batch["input_ids"] == placeholder(model.config)).long()
    return batch


def text_batch(config: Any, image_tokens: int = 0, rows: int = ROWS, seed: int = 0) -> Batch:
    """Rows of a question, the image in it, and an answer, which alone is supervised; eos ends it."""
    text = getattr(config, "text_config", None) or config
    eos = _token(text, "eos_token_id", 2)
    bos = _token(text, "bos_token_id", 1)
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(5, FIRST_TOKEN - 10, (rows, PROMPT + ANSWER), generator=generator)
    parts = [torch.full((rows, 1), bos), words[:, :2]]
    if image_tokens:
        start = next(
            (getattr(config, n) for n in _START_TOKENS if getattr(config, n, None) is not None), None
        )
        end = next((getattr(config, n) for n in _END_TOKENS if getattr(config, n, None) is not None), None)
        parts += [torch.full((rows, 1), start)] if start is not None else []
        parts += [torch.full((rows, image_tokens), placeholder(config))]
        parts += [torch.full((rows, 1), end)] if end is not None else []
    parts += [words[:, 2:], torch.full((rows, 1), eos)]
    ids = torch.cat(parts, dim=1)
    labels = ids.clone()
    labels[:, : -ANSWER - 1] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def placeholder(config: Any) -> int:
    """The id that stands for one image feature."""
    found = (getattr(config, n, None) for n in _IMAGE_TOKENS)
    return next((token for token in found if token is not None), UNNAMED)


def packed_patches(config: Any, height: int = 4, width: int = 4) -> Batch:
    """Images as one list of flattened patches with their grids, the way of Qwen2-VL."""
    vision = _vision(config)
    patch, frames = _first(vision, "patch_size"), _first(vision, "temporal_patch_size", "patch_temporal")
    channels = _first(vision, "in_channels", "num_channels") or 3
    features = channels * patch * patch * (frames or 1)
    return {
        "pixel_values": pixels(ROWS * height * width, features),
        "image_grid_thw": torch.tensor([[1, height, width]] * ROWS),
    }


def features_of(model: nn.Module, images: Batch) -> int:
    """How many image features the model makes of `images`."""
    owner = _maker(model)
    known = _asked_for(model)
    given = {name: value for name, value in images.items() if name in known or known & {"args", "kwargs"}}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        out = owner.get_image_features(**given)
    features = getattr(out, "pooler_output", out)
    if not isinstance(features, Tensor):
        features = torch.cat([part.reshape(-1, part.shape[-1]) for part in features])
    return features.numel() // features.shape[-1]


def _maker(model: nn.Module) -> Any:
    return model if hasattr(model, "get_image_features") else getattr(model, "model", None)


def _asked_for(model: nn.Module) -> set[str]:
    """What the model wants to make image features of."""
    make = getattr(_maker(model), "get_image_features", None)
    return set() if make is None else set(inspect.signature(inspect.unwrap(make)).parameters)


def _vision(config: Any) -> Any:
    return next(
        (
            getattr(config, n)
            for n in ("vision_config", "vq_config", "vision_encoder_config")
            if getattr(config, n, None)
        ),
        config,
    )


def _first(config: Any, *names: str) -> Any:
    return next((getattr(config, n) for n in names if getattr(config, n, None) is not None), None)


def _token(config: Any, name: str, default: int) -> int:
    value = getattr(config, name, None)
    value = value[0] if isinstance(value, list) else value
    return default if value is None else value
