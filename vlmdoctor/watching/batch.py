"""What a model was called with: how many labels and images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlmdoctor.knowledge.labels import IGNORE_INDEX

# What a text-only call consists of. Only where all names are known can "no images" be told from
# images under another name.
_TEXT = {
    *("input_ids", "attention_mask", "labels", "position_ids", "segment_ids", "token_type_ids"),
    *("cache_position", "past_key_values", "num_items_in_batch", "use_cache", "logits_to_keep"),
    *("output_attentions", "output_hidden_states", "return_dict"),
}
_PICTURES = ("pixel_values", "pixel_values_videos", "images", "image")
_GRIDS = ("image_grid_thw", "video_grid_thw")


def supervised(args: Any, kwargs: Mapping[str, Any], name: str = "labels") -> Tensor | None:
    """How many labels are not ignored, as a scalar on their device; None where there are no labels."""
    labels = _named(args, kwargs).get(name)
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return None
    return (labels != IGNORE_INDEX).sum()


def count_images(args: Any, kwargs: Mapping[str, Any]) -> int | None:
    """How many images the call has, from shapes alone; None where that is not known."""
    named = _named(args, kwargs)
    for names in (_GRIDS, _PICTURES):
        counts = [_images_in(value) for name in names if (value := named.get(name)) is not None]
        if counts:
            return _sum(counts)
    given = {name for name, value in named.items() if value is not None}
    return 0 if "input_ids" in given and given <= {*_TEXT, *_GRIDS, *_PICTURES} else None


def _named(args: Any, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    if not kwargs and args and isinstance(args[0], Mapping):
        return args[0]
    return {} if args and not isinstance(args[0], Mapping) and not kwargs else kwargs


def _images_in(value: Any) -> int | None:
    """How many images a value holds; None where that is not known.

    A processor's output that was passed on whole holds them under its own name; a list has one entry for each
    image, or one list for each row.
    """
    if isinstance(value, Tensor):
        return len(value) if value.ndim > 0 else None
    if isinstance(value, Mapping):
        inner = [value[name] for name in (*_GRIDS, *_PICTURES) if value.get(name) is not None]
        return _images_in(inner[0]) if inner else None
    if isinstance(value, list | tuple):
        rows = [_images_in(item) if isinstance(item, list | tuple) else 1 for item in value]
        return _sum(rows)
    return None


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
