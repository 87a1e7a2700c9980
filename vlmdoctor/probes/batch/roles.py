"""Which part of a batch is the token ids, the labels, the mask and the images: by what they hold.

Names are believed where they say it (`input_ids`, `targets`, `pixel_values`); everything else is inferred
from shapes and values: labels are the tokens of another part, at their positions or one ahead, with something
below zero where nothing is to be learned; a mask holds zeros and ones; positions count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.knowledge.named_parts import current

_IDS = ("input_ids", "ids", "token_ids", "tokens", "text_ids", "text", "idx")
_LABELS = ("labels", "label", "targets", "target", "y")
_LABEL_WORDS = re.compile(r"(^|_)(labels?|targets?|tgt|y)(_|$)")
_MASKS = ("attention_mask", "padding_mask", "mask")
_MASK_WORDS = re.compile(r"(^|_)(att(entio)?n|pad(ding)?|valid|key|text|input|src|token)s?_(\w+_)?mask$")
_NO_IDS = re.compile(r"label|target|mask|pos|type|segment|grid|size|thw|index|len|seq|ratio")
_IMAGES = re.compile(r"pixel|image|img|picture|flattened_patches")
_NO_IMAGES = re.compile(r"mask|size|grid|ratio|position|embed")
_NAMELESS = re.compile(r"(batch)?\[\d+\]|\d+")
_SHIFTS = (0, 1, -1, 2)
_ALIKE = 0.9
_FEWEST = 4  # labels


@dataclass(frozen=True)
class Roles:
    """Names of a batch's parts by what they are; None, or empty, where there is no such part.

    Attributes:
        ids: The token ids [B, T].
        labels: The labels [B, T].
        mask: The padding mask [B, T].
        hides: Whether the mask is set where padding is, and not where text is.
        images: The images.
        ignored: The label that the loss leaves out.
    """

    ids: str | None = None
    labels: str | None = None
    mask: str | None = None
    hides: bool = False
    images: tuple[str, ...] = ()
    ignored: int = IGNORE_INDEX


def roles_of(fields: Mapping[str, Any], model: Any = None) -> Roles:
    """The roles in a batch whose parts have these names; those without one of their own are `[0]`, `[1]`."""
    whole = {name: value for name, value in fields.items() if _is_whole(value)}
    labels = _named_labels(whole)
    ids = _tokens(whole, labels)
    if labels is None or ids is None:
        ids, labels = _pair(whole, ids, labels)
    ignored = ignored_label(None if labels is None else whole[labels], model)
    mask = _mask(fields, ids, labels)
    hides = mask is not None and _hides(mask, fields[mask])
    length = None if ids is None else fields[ids].shape[1]
    return Roles(ids, labels, mask, hides, tuple(_images(fields, length)), ignored)


def ignored_label(labels: torch.Tensor | None, model: Any) -> int:
    """The label that the loss leaves out: as was measured, a loss module says, or the labels themselves."""
    if (measured := current().ignored) is not None:
        return measured
    if hasattr(getattr(model, "config", None), "model_type"):
        return IGNORE_INDEX
    modules = model.modules() if isinstance(model, nn.Module) else ()
    said = {getattr(module, "ignore_index", IGNORE_INDEX) for module in modules}
    said = {value for value in said if isinstance(value, int)} - {IGNORE_INDEX}
    if len(said) == 1:
        return said.pop()
    if labels is None or labels.is_meta:
        return IGNORE_INDEX
    below = labels[labels < 0].unique().tolist()
    return below[0] if len(below) == 1 else IGNORE_INDEX


def shares_of_shifts(
    ids: torch.Tensor, labels: torch.Tensor, ignored: int = IGNORE_INDEX
) -> dict[int, float]:
    """For each shift that leaves enough labels to compare, the share of labels that are the token there."""
    shares, length = {}, ids.shape[1]
    for shift in _SHIFTS:
        if length <= abs(shift):
            continue
        own = labels[:, max(0, -shift) : length - max(0, shift)]
        meant = ids[:, max(0, shift) : length - max(0, -shift)]
        known = own != ignored
        if int(known.sum()) >= _FEWEST:
            shares[shift] = float((own == meant)[known].float().mean())
    return shares


def is_nameless(name: str) -> bool:
    """Whether the part of a batch has no name of its own."""
    return bool(_NAMELESS.fullmatch(name))


def _is_whole(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2 and value.dtype in (torch.int64, torch.int32)


def _named_labels(whole: Mapping[str, torch.Tensor]) -> str | None:
    if (said := current().labels) in whole:
        return said
    known = next((name for name in _LABELS if name in whole), None)
    fitting = [n for n in whole if _LABEL_WORDS.search(n.lower()) and not re.search("mask|len|pos", n)]
    return known or (fitting[0] if len(fitting) == 1 else None)


def _tokens(whole: Mapping[str, torch.Tensor], labels: str | None) -> str | None:
    known = next((name for name in _IDS if name in whole and name != labels), None)
    return known or next(iter(_one(_others(whole, labels))), None)


def _others(whole: Mapping[str, torch.Tensor], labels: str | None) -> list[str]:
    """What may be ids: neither labels by name, nor a mask, positions or kinds, by name or by value."""
    return [
        name
        for name, value in whole.items()
        if name != labels
        and name not in _LABELS
        and (is_nameless(name) or not _NO_IDS.search(name))
        and not _is_binary(value)
        and not _counts(value)
    ]


def _one(names: list[str]) -> list[str]:
    return names if len(names) == 1 else []


def _pair(
    whole: Mapping[str, torch.Tensor], ids: str | None, labels: str | None
) -> tuple[str | None, str | None]:
    """Ids and labels inferred from what they hold; what is known already stays."""
    candidates = _others(whole, labels)
    pairs = [
        (one, other)
        for one in ([ids] if ids else candidates)
        for other in ([labels] if labels else candidates)
        if one != other and whole[one].shape == whole[other].shape
    ]
    fitting = [pair for pair in pairs if _are_tokens_and_labels(whole[pair[0]], whole[pair[1]])]
    return fitting[0] if fitting else (ids, labels)


def _are_tokens_and_labels(ids: torch.Tensor, labels: torch.Tensor) -> bool:
    if ids.is_meta or labels.is_meta:
        return False
    left_out = (labels < 0) & (labels != ids)
    if bool((labels < 0).all()):
        return bool((ids >= 0).any())  # every label is left out
    below = labels[left_out].unique()
    ignored = int(below[0]) if len(below) == 1 else IGNORE_INDEX
    shares = shares_of_shifts(ids, labels, ignored)
    best = max(shares, key=lambda shift: shares[shift], default=0)
    if shares.get(best, 0.0) < _ALIKE:
        return False
    # The same the other way round where nothing is left out: then labels are those that are ahead, and
    # where they are equal the first part is the ids.
    return best >= 0 or bool(left_out.any())


def _mask(fields: Mapping[str, Any], ids: str | None, labels: str | None) -> str | None:
    if ids is None:
        return None
    shape = fields[ids].shape
    alike = [
        name
        for name, value in fields.items()
        if getattr(value, "shape", None) == shape and name not in (ids, labels)
    ]
    if (known := next((name for name in _MASKS if name in alike), None)) is not None:
        return known
    fitting = [name for name in alike if _MASK_WORDS.search(name.lower())]
    nameless = [n for n in alike if is_nameless(n) and _is_binary(fields[n]) and bool(fields[n][:, 0].any())]
    return next(iter([*fitting, *_one(nameless)]), None)


def _hides(name: str, mask: Any) -> bool:
    """Torch's own padding masks are true where there is padding, others where there is none."""
    if "pad" not in name or mask.dtype != torch.bool or mask.is_meta:
        return False
    return float(mask.float().mean()) < 0.5


def _is_binary(value: torch.Tensor) -> bool:
    if value.dtype == torch.bool:
        return True
    return not value.is_meta and value.numel() > 0 and bool(((value == 0) | (value == 1)).all())


def _counts(value: torch.Tensor) -> bool:
    """Whether the rows count, as positions do."""
    if value.is_meta or value.shape[1] < 4:
        return False
    return bool((value.diff(dim=1) == 1).float().mean() > 0.8)


def _images(fields: Mapping[str, Any], length: int | None) -> Iterable[str]:
    floats = {
        name: value
        for name, value in fields.items()
        if isinstance(value, torch.Tensor)
        and (value.is_floating_point() or value.dtype == torch.uint8)
        and value.ndim > 1
    }
    named = [name for name in floats if _IMAGES.search(name) and not _NO_IMAGES.search(name)]
    return named or [
        name
        for name, value in floats.items()
        if value.ndim >= 4 and not _NO_IMAGES.search(name) and tuple(value.shape[-2:]) != (length, length)
    ]
