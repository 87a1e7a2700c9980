"""What single families want beside text and pixels, by the name of the argument."""

from __future__ import annotations

from typing import Any

import torch

from vlmdoctor.knowledge.config_fields import field, kind_of
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.targets.synthetic.drawn import pixels

_RESIDUES = 8  # amino acids of a protein, each a token


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
    if "token_type_ids" in names and token is not None:
        # PaliGemma's mark what attends causally (the answer), Gemma 3's the image.
        answers = kind_of(config) == "paligemma"
        more["token_type_ids"] = (batch["labels"] != IGNORE_INDEX).long() if answers else marked
    if "cross_attention_mask" in names and "pixel_values" in batch:
        _, images, tiles = batch["pixel_values"].shape[:3]
        mask = batch["aspect_ratio_mask"][:, None].expand(rows, length, images, tiles)
        more["cross_attention_mask"] = mask.contiguous()
    if "image_attention_mask" in names and "pixel_values" in batch:
        more["image_attention_mask"] = torch.ones(
            rows, length, batch["pixel_values"].shape[1], dtype=torch.long
        )
    if "image_embeds_position_mask" in names and ("pixel_values" in batch or "flattened_patches" in batch):
        images = len(batch["pixel_values"]) // rows if "pixel_values" in batch else 1
        latent = int(field(config, "latent_query_num", default=64)) * images
        if length < latent + 2:
            for name in ("input_ids", "attention_mask", "labels"):
                batch[name] = batch[name][:, :1].expand(rows, latent + 16).contiguous()
        mask = torch.zeros_like(batch["input_ids"])
        mask[:, 1 : 1 + latent] = 1
        batch["labels"] = batch["labels"].masked_fill(mask.bool(), IGNORE_INDEX)
        more["image_embeds_position_mask"] = mask
    if "qformer_input_ids" in names:
        more["qformer_input_ids"] = torch.ones(rows, 4, dtype=torch.long)
        more["qformer_attention_mask"] = torch.ones(rows, 4, dtype=torch.long)
    if "bbox" in names:
        more["bbox"] = torch.tensor([0.1, 0.1, 0.2, 0.2]).expand(rows, length, 4).contiguous()
    if {"state", "actions"} <= names:
        wide, steps = field(config, "max_action_dim", default=32), field(config, "chunk_size", default=50)
        del batch["labels"]  # its targets are the actions
        more["state"] = pixels(rows, field(config, "max_state_dim", default=32))
        more["actions"], more["timestep"] = pixels(rows, steps, wide), pixels(rows).sigmoid()
    if kind_of(config) == "pp_formulanet":  # its decoder reads these, shifted by the model
        batch["input_ids"] = batch["labels"].clone()
        batch["attention_mask"] = torch.ones_like(batch["labels"])
    if "input_ids" not in names:
        del batch["attention_mask"]  # that of the text; where there is none it would hide parts of the image
    if "protein_input_ids" in names:
        drawn = torch.randint(4, 24, (rows, _RESIDUES), generator=torch.Generator().manual_seed(1))
        more["protein_input_ids"], more["protein_attention_mask"] = drawn, torch.ones_like(drawn)
    if "decoder_input_ids" in names and "labels" not in names:  # where there are labels, they give these
        more["decoder_input_ids"] = batch["input_ids"].clone()
    return {**batch, **more}
