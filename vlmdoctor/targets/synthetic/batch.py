"""A whole training batch: text with room for the images, the images, and labels."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from vlmdoctor.knowledge.config_fields import field, image_marks, image_token, special_tokens, text_config
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.targets.synthetic.extras import extras
from vlmdoctor.targets.synthetic.features import features_of
from vlmdoctor.targets.synthetic.pixels import image_inputs

_MOST_TOKENS = 1 << 24


def batch_for(
    model: Any,
    config: Any = None,
    *,
    images: int = 1,
    text: int = 16,
    batch_size: int = 2,
    image_size: int | None = None,
    length: int | None = None,
    answer: int | None = None,
) -> dict[str, torch.Tensor]:
    """A training batch that `model` can be called with: real integers, random pixels, labels.

    Args:
        model: A transformers model, or its class (then `config` has to be given).
        config: The configuration; by default the model's own.
        images: Images in each sample.
        text: Tokens of text in each sample, beside those of the images.
        batch_size: Samples.
        image_size: Height and width of an image; by default what the configuration suggests.
        length: Tokens in each sample altogether; overrides `text` where the images leave room.
        answer: Tokens at the end of each sample that alone are supervised; by default all text is.

    How many tokens an image takes is asked of the model's own vision tower, laid out without weights.
    """
    if isinstance(model, type):
        kind: Any = model
        with torch.device("meta"):
            model = kind._from_config(config)
    config = model.config if config is None else config
    names = set(inspect.signature(model.forward).parameters)
    pixels = image_inputs(config, names, images, batch_size, image_size)
    per_sample = 0
    token = image_token(config)
    if pixels and token is not None:
        per_sample = _image_tokens(model, config, pixels, images, batch_size)
    shown = _shown(config, per_sample, images)
    taken = sum(map(len, shown))
    if length is not None:
        text = max(length - taken, images + 1)
    if batch_size * (taken + text) > _MOST_TOKENS:
        raise ValueError(f"the text would have {batch_size} × {taken + text} tokens")
    ids = _text(config, batch_size, taken + max(text, images + 1))
    labels = ids.clone()
    start = min(2, ids.shape[1] - taken - images)
    for block in shown:
        ids[:, start : start + len(block)] = torch.tensor(block)
        labels[:, start : start + len(block)] = IGNORE_INDEX
        start += len(block) + 1  # a word between two images: families tell them apart by it
    if answer is not None:
        labels[:, :-answer] = IGNORE_INDEX
        if field(config, "is_encoder_decoder"):
            labels = labels[:, -answer:].contiguous()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels, "labels": labels}
    batch = extras(config, names, batch, token)
    takes_all = any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values()
    )
    return {name: value for name, value in batch.items() if name in names or (takes_all and name == "labels")}


def _shown(config: Any, per_sample: int, images: int) -> list[list[int]]:
    """What stands for each image of a sample: its placeholders, between its marks."""
    token = image_token(config)
    if not per_sample or token is None:
        return []
    before, behind = image_marks(config)
    each, rest = divmod(per_sample, images)
    counts = [each] * (images - 1) + [each + rest]
    return [[*before, *[token] * count, *behind] for count in counts]


def _image_tokens(model: Any, config: Any, pixels: Any, images: int, batch_size: int) -> int:
    """Placeholders in each sample."""
    queries = field(config, "num_query_tokens")
    if queries is not None:
        frames = pixels["pixel_values"].shape[1] if pixels["pixel_values"].ndim == 5 else images
        return int(queries) * frames
    try:
        return (_features(model, config, pixels) or 0) // batch_size
    except (RuntimeError, ValueError, IndexError):
        # The step raises it again, and tells in which module.
        return images


def _features(model: Any, config: Any, pixels: dict[str, torch.Tensor]) -> int | None:
    if all(parameter.is_meta for parameter in model.parameters()):
        return features_of(model, pixels)
    with torch.device("meta"):
        laid_out = type(model)._from_config(config)
    return features_of(laid_out, pixels)


def _text(config: Any, rows: int, length: int) -> torch.Tensor:
    vocabulary = int(
        field(text_config(config), "vocab_size", default=field(config, "vocab_size", default=128))
    )
    special = special_tokens(config)
    allowed = [i for i in range(min(vocabulary, 512)) if i not in special] or [0]
    drawn = torch.randint(0, len(allowed), (rows, length), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor(allowed)[drawn]
    for place, name in ((0, "bos_token_id"), (-1, "eos_token_id")):
        token = field(text_config(config), name)
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int) and 0 <= token < vocabulary:
            ids[:, place] = token
    return ids
