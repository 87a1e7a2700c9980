"""What is in the batch: padding, packing, rows of another kind."""

from __future__ import annotations

import torch

from benchmarks.detection.case import Made
from benchmarks.detection.models import ANSWER, TEXT
from benchmarks.detection.shrink import IMAGE
from benchmarks.detection.variants.registry import of_role, variant
from vlmdoctor.knowledge.config_fields import image_token
from vlmdoctor.targets.synthetic import batch_for


@variant("llava", "smolvlm", "internvl", "paligemma", "gemma3")
def a_row_without_an_image(made: Made) -> None:
    """A batch of one row with an image and one of text alone."""
    image = image_token(made.model.config)
    row = made.batch["input_ids"][1]
    row[row == image] = 7
    made.batch["pixel_values"] = made.batch["pixel_values"][:1]
    if made.model.config.model_type == "gemma3":  # PaliGemma's tell the prompt from the answer
        made.batch["token_type_ids"] = (made.batch["input_ids"] == image).long()
    if "pixel_attention_mask" in made.batch:
        made.batch["pixel_attention_mask"] = made.batch["pixel_attention_mask"][:1]
    if made.model.config.model_type in ("idefics3", "smolvlm"):  # they want as many images for each row
        blank = torch.zeros_like(made.batch["pixel_values"])
        made.batch["pixel_values"] = torch.cat([made.batch["pixel_values"], blank])
        mask = made.batch["pixel_attention_mask"]
        made.batch["pixel_attention_mask"] = torch.cat([mask, torch.zeros_like(mask)])


@variant("llama", "qwen3", "gemma2", "llava", "qwen2_5_vl", "internvl", "codegen", "gptj")
def left_padding(made: Made) -> None:
    pad_a_row(made, left=True)


@variant("llama", "gpt2", "opt", "llava", "qwen2_5_vl", "gemma3", "smolvlm")
def right_padding(made: Made) -> None:
    pad_a_row(made, left=False)


@variant("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
def positions_of_its_own(made: Made) -> None:
    """The model's own positions made by the collator, each row from another number on."""
    given = {name: value for name, value in made.batch.items() if name.endswith(("ids", "thw", "mask"))}
    positions, _ = made.model.model.get_rope_index(**given)
    made.batch["position_ids"] = positions + torch.arange(positions.shape[1])[None, :, None]


@variant("llama", "llava", "opt", "gpt2")
def positions_counted(made: Made) -> None:
    """Padding on the left, and positions that count the real tokens."""
    pad_a_row(made, left=True)
    made.batch["position_ids"] = (made.batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)


@variant("llama", "qwen2")
def packed_with_a_mask(made: Made) -> None:
    """Two samples in one row, each counted from 0, which the attention mask keeps apart."""
    ids, labels = made.batch["input_ids"], made.batch["labels"].clone()
    labels[:, 0] = -100
    length = ids.shape[1]
    inside = torch.block_diag(*[torch.ones(length, length)] * len(ids)).tril()
    hidden = torch.zeros_like(inside).masked_fill(inside == 0, torch.finfo(inside.dtype).min)
    made.batch = {
        "input_ids": ids.reshape(1, -1),
        "labels": labels.reshape(1, -1),
        "position_ids": torch.arange(length).repeat(len(ids))[None],
        "attention_mask": hidden[None, None],
    }


@variant("llama", "qwen3", "gemma2", "llava", "qwen3_vl")
def packed_by_positions(made: Made) -> None:
    """Two samples in one row that positions alone keep apart: each counts from 0, without mask and cache."""
    made.model.config.get_text_config().use_cache = False
    ids, labels = made.batch["input_ids"], made.batch["labels"].clone()
    labels[:, 0] = -100
    count = torch.arange(ids.shape[1]).repeat(len(ids))[None]
    packed = {"input_ids": ids.reshape(1, -1), "labels": labels.reshape(1, -1), "position_ids": count}
    if "image_grid_thw" in made.batch:
        given = {n: v for n, v in made.batch.items() if n.endswith(("ids", "thw", "mask"))}
        axes, _ = made.model.model.get_rope_index(**given)
        packed["position_ids"] = torch.cat([count[None], axes.reshape(3, 1, -1)])
        packed["mm_token_type_ids"] = made.batch["mm_token_type_ids"].reshape(1, -1)
    kept = ("pixel_values", "image_grid_thw")
    made.batch = packed | {name: value for name, value in made.batch.items() if name in kept}


@variant("llava", "qwen3_vl", "idefics3", "mllama", "kosmos-2", "molmo2")
def two_images_in_a_row(made: Made) -> None:
    made.batch = batch_for(made.model, images=2, image_size=IMAGE, text=TEXT, answer=ANSWER)


@variant("llava", "qwen3_vl", "gemma3", "blip-2", "florence2", "llama")
def batch_of_one(made: Made) -> None:
    made.batch = batch_for(made.model, batch_size=1, image_size=IMAGE, text=TEXT, answer=ANSWER)


@variant("llava", "qwen3_vl", "gemma3", "idefics3")
def text_alone(made: Made) -> None:
    """A batch without an image, of a model whose eyes are frozen."""
    for parameter in of_role(made, "vision", "projector"):
        parameter.requires_grad_(False)
    made.batch = batch_for(made.model, images=0, text=TEXT, answer=ANSWER)


@variant("llava", "qwen3_vl", "paligemma", "llama")
def a_row_without_an_answer(made: Made) -> None:
    """The first row was cut off in front of its answer."""
    made.batch["labels"][0] = -100


@variant("llava", "gemma3", "kosmos-2.5", "llama")
def one_token_supervised(made: Made) -> None:
    """A class is foretold, by one token."""
    made.batch = batch_for(made.model, image_size=IMAGE, text=TEXT, answer=1)


@variant("llava", "qwen3_vl", "molmo2")
def all_words_supervised(made: Made) -> None:
    """Captions, without a question."""
    made.batch = batch_for(made.model, image_size=IMAGE, text=TEXT)


def pad_a_row(made: Made, *, left: bool, by: int = 3) -> None:
    """The second row loses the first words of its question and gets padding instead, on one side."""
    batch, row = made.batch, 1
    ids = batch["input_ids"]
    config = getattr(made.model, "config", None)
    pad = getattr(getattr(config, "text_config", config), "pad_token_id", None) or 0
    # From behind the image to in front of the answer there are at least `by` words.
    start = ids.shape[1] - 6 - by
    for name, fill in (
        ("input_ids", pad),
        ("attention_mask", 0),
        ("labels", -100),
        ("targets", -100),
        ("mm_token_type_ids", 0),
        ("token_type_ids", 0),
    ):
        if name in batch and batch[name].shape == ids.shape:
            values = batch[name][row]
            kept = torch.cat([values[:start], values[start + by :]])
            filler = values.new_full((by,), fill)
            batch[name][row] = torch.cat([filler, kept] if left else [kept, filler])
