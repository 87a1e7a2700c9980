"""Splitting a batch into some of its rows, with the images that belong to them, and without padding anew."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.probes.batch.fields import Inputs, placeholders
from vlmdoctor.subject import Subject

MOST_PARTS = 4
_OF_IMAGES = re.compile("pixel|image|grid_thw")
_AXES = (2, 3, 4)  # of rotary positions, which stand in front of the rows


def parts_of(inputs: Inputs, model: nn.Module, subject: Subject) -> tuple[int, list[Any]]:
    """(rows of the batch, up to `MOST_PARTS` batches that make it up); none where there is one row."""
    rows, parts = fields_of_parts(inputs, model, subject)
    return rows, [inputs.with_(**part) for part in parts]


def fields_of_parts(
    inputs: Inputs, model: nn.Module, subject: Subject, most: int = MOST_PARTS
) -> tuple[int, list[dict[str, Any]]]:
    """(rows of the batch, what it holds of up to `most` runs of them, by name).

    Raises:
        Unavailable: It is not known which of its parts belong to which row.
    """
    rows, length = _shape(inputs)
    if rows < 2:
        return rows, []
    counts = _placeholders(inputs, model, subject) or [0] * rows
    each = -(-rows // most)
    bounds = [*range(0, rows, each), rows]
    made: list[dict[str, Any]] = [{} for _ in range(len(bounds) - 1)]
    grids = {
        len(value): value.prod(dim=1).tolist()
        for name, value in inputs.fields.items()
        if name.endswith("grid_thw") and isinstance(value, torch.Tensor)
    }
    for name, value in inputs.fields.items():
        for part, one in zip(
            made, _split(name, value, name in inputs.images, length, bounds, counts, grids), strict=True
        ):
            part[name] = one
    return rows, made


def _shape(inputs: Inputs) -> tuple[int, int | None]:
    """(rows, tokens in a row); the latter None where no token ids are known."""
    if inputs.ids is not None:
        rows, length = inputs[inputs.ids].shape
        return rows, length
    firsts = {len(v) for v in inputs.fields.values() if isinstance(v, torch.Tensor) and v.ndim}
    if len(firsts) != 1:
        raise Unavailable("no token ids were found in the batch, and its parts are not of one length")
    return firsts.pop(), None


def _placeholders(inputs: Inputs, model: nn.Module, subject: Subject) -> list[int]:
    """How many placeholders stand in each row; empty where they are not known."""
    known = placeholders(model, subject.processor, subject.tokenizer)
    if inputs.ids is None or not known:
        return []
    ids = inputs[inputs.ids]
    return [int(n) for n in torch.isin(ids, torch.tensor(sorted(known)).to(ids)).sum(dim=1)]


def _split(
    name: str,
    value: Any,
    is_images: bool,
    length: int | None,
    bounds: list[int],
    counts: list[int],
    grids: dict[int, list[int]],
) -> list[Any]:
    rows = len(counts)
    spans = list(pairwise(bounds))
    if isinstance(value, list | tuple) and len(value) == rows:
        return [value[first:last] for first, last in spans]
    of_images = is_images or _OF_IMAGES.search(name) is not None
    if isinstance(value, Mapping):
        split = {
            key: _split(str(key), one, of_images, length, bounds, counts, grids) for key, one in value.items()
        }
        return [{key: parts[place] for key, parts in split.items()} for place in range(len(spans))]
    if not isinstance(value, torch.Tensor) or not value.ndim or (len(value) == 1 and not of_images):
        return [value] * len(spans)
    if len(value) == rows:
        if of_images and any(counts) and not all(counts):
            raise Unavailable("which image belongs to which row is not known")
        return [value[first:last] for first, last in spans]
    if value.ndim == 3 and len(value) in _AXES and tuple(value.shape[1:]) == (rows, length):
        return [value[:, first:last] for first, last in spans]
    if len(value) == length and value.ndim <= 2 and not is_images:
        return [value] * len(spans)  # one for each position, of all rows
    ends = _ends(name, grids.get(len(value), [1] * len(value)), counts, rows)
    # Rows without an image have none of what belongs to images.
    return [value[ends[first] : ends[last]] if ends[first] < ends[last] else None for first, last in spans]


def _ends(name: str, weights: list[int], counts: list[int], rows: int) -> list[int]:
    """How many of a field's entries belong to the first 0, 1, 2, ... rows, by the placeholders in them."""
    shares = counts if any(counts) else [1] * rows
    reached = {weight: number for number, weight in enumerate(accumulate(weights, initial=0))}
    ends = []
    for tokens in accumulate(shares, initial=0):
        weight, rest = divmod(tokens * sum(weights), sum(shares))
        if rest or weight not in reached:
            raise Unavailable(f"which of {name} belongs to which row is not known")
        ends.append(reached[weight])
    return ends
