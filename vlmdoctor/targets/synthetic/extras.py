"""What single families want beside text and pixels, by the name of the argument."""

from __future__ import annotations

from typing import Any

import torch

from vlmdoctor.targets.synthetic.drawn import pixels
from vlmdoctor.targets.synthetic.fields import field, kind_of


def extras(
    config: Any, names: set[str], batch: dict[str, torch.Tensor], token: int | None
) -> dict[str, torch.Tensor]:
    """`batch` with the further arguments that a forward with parameters `names` needs."""
    ids = batch["input_ids"]
    rows, length = ids.shape
    more: dict[str, torch.Tensor] = {}
    marked = (ids == token).long() if token is not None else torch.zeros_like(ids)
    if "mm_token_type_ids" in names:
        more["mm_token_type_ids"] = marked
    if "moe_mm_token_type_ids" in names:
        more["moe_mm_token_type_ids"] = marked
    if "token_type_ids" in names:
        # PaliGemma's mark what attends causally (the answer), Gemma 3's the image.
        prefix = kind_of(config) == "paligemma"
        more["token_type_ids"] = 1 - marked if prefix else marked
    if "cross_attention_mask" in names and "pixel_values" in batch:
        _, images, tiles = batch["pixel_values"].shape[:3]
        mask = batch["aspect_ratio_mask"][:, None].expand(rows, length, images, tiles)
        more["cross_attention_mask"] = mask.contiguous()
    if "image_attention_mask" in names and "pixel_values" in batch:
        more["image_attention_mask"] = torch.ones(
            rows, length, batch["pixel_values"].shape[1], dtype=torch.long
        )
    if "image_embeds_position_mask" in names and ("pixel_values" in batch or "flattened_patches" in batch):
        latent = int(field(config, "latent_query_num", default=64))
        if length < latent + 2:
            for name in ("input_ids", "attention_mask", "labels"):
                batch[name] = batch[name][:, :1].expand(rows, latent + 16).contiguous()
        mask = torch.zeros_like(batch["input_ids"])
        mask[:, 1 : 1 + latent] = 1
        more["image_embeds_position_mask"] = mask
    if "qformer_input_ids" in names:
        more["qformer_input_ids"] = torch.ones(rows, 4, dtype=torch.long)
        more["qformer_attention_mask"] = torch.ones(rows, 4, dtype=torch.long)
    if "bbox" in names:
        more["bbox"] = torch.tensor([0.1, 0.1, 0.2, 0.2]).expand(rows, length, 4).contiguous()
    if {"state", "actions"} <= names:
        wide, steps = field(config, "max_action_dim", default=32), field(config, "chunk_size", default=50)
        more["state"] = pixels(rows, field(config, "max_state_dim", default=32))
        more["actions"], more["timestep"] = pixels(rows, steps, wide), pixels(rows).sigmoid()
    if "decoder_input_ids" in names and not hasattr(config, "qformer_config"):
        more["decoder_input_ids"] = batch["input_ids"].clone()
    return {**batch, **more}
