"""Finding in somebody's batch what can be changed: its tokens, labels, padding and images."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

IGNORED = -100

_IDS = ("input_ids", "ids", "token_ids", "tokens", "text_ids", "text", "idx")
_LABELS = ("labels", "label", "targets", "target", "y")
_MASKS = ("attention_mask", "padding_mask", "mask")
_NO_IDS = re.compile(r"label|target|mask|pos|type|segment|grid|size|thw|index|len|seq|ratio")
_IMAGES = re.compile(r"pixel|image|img|picture|flattened_patches")
_NO_IMAGES = re.compile(r"mask|size|grid|ratio|position|embed")
_PLACEHOLDER = re.compile(
    r"(image|video|audio|vision|media|img)_?\w*token_?\w*(id|index)|(boi|eoi)_token_(id|index)"
)


class Inputs:
    """A batch by the names of its parts, so that a changed copy of it can be made.

    Attributes:
        fields: What the batch holds, by name; the parts of a tuple have the names of forward's parameters.
        ids: Name of the token ids [B, T], or None.
        reads_labels: Whether `ids` are the labels, of which an encoder-decoder makes what its decoder reads.
        labels: Name of the labels [B, T], or None.
        mask: Name of the padding mask [B, T], or None.
        images: Names of the images.
    """

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self._kind = type(batch)
        self.fields: dict[str, Any] = _fields(model, batch)
        whole = {
            name: value
            for name, value in self.fields.items()
            if isinstance(value, torch.Tensor) and value.ndim == 2 and _is_integer(value)
        }
        self.reads_labels = False
        self.ids = _tokens(whole)
        if _has_encoder(model):
            # What the decoder reads is made of the labels, moved one to the right, unless it is given.
            self.ids = "decoder_input_ids" if "decoder_input_ids" in whole else None
            if self.ids is None and "labels" in whole:
                self.ids, self.reads_labels = "labels", True
        shape = self.fields[self.ids].shape if self.ids else None
        alike = [name for name, value in self.fields.items() if getattr(value, "shape", None) == shape]
        self.labels = next((name for name in _LABELS if name in whole), None)
        masks = ("decoder_attention_mask",) if _has_encoder(model) else _MASKS
        self.mask = next((name for name in masks if name in alike), None)
        floats = {
            name: value
            for name, value in self.fields.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1
        }
        named = [name for name in floats if _IMAGES.search(name) and not _NO_IMAGES.search(name)]
        self.images = named or [n for n, v in floats.items() if v.ndim >= 4 and not _NO_IMAGES.search(n)]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.fields[name]

    def with_(self, **changed: Any) -> Any:
        """A batch like the user's with these parts changed; a part of None is left out of a mapping."""
        fields = {**self.fields, **changed}
        if issubclass(self._kind, Mapping):
            return {k: v for k, v in fields.items() if v is not None or k not in changed}
        if issubclass(self._kind, tuple) and hasattr(self._kind, "_fields"):
            return self._kind(*fields.values())
        return self._kind(fields.values()) if issubclass(self._kind, tuple | list) else fields.popitem()[1]

    @property
    def valid(self) -> torch.Tensor:
        """[B, T]: where there is a token and not padding."""
        ids = self[self.ids]
        if self.reads_labels:
            return ids != IGNORED
        return torch.ones_like(ids, dtype=torch.bool) if self.mask is None else self[self.mask].bool()

    def predicting(self) -> torch.Tensor | None:
        """[B, T]: where the logits are compared with a label that is the next token.

        None where the labels are not the tokens (masked-language models and diffusion learn another way).
        """
        if self.labels is None or self[self.labels].shape != self[self.ids].shape:
            return None
        ids, labels = self[self.ids], self[self.labels]
        if labels.device != ids.device:
            return None
        supervised = (labels != IGNORED) & self.valid
        if not supervised.any():
            return None
        following = torch.zeros_like(supervised)
        if bool((labels == ids)[supervised].float().mean() >= 0.99):
            following[:, :-1] = supervised[:, 1:]
            return following
        ahead = supervised[:, :-1]
        if ahead.any() and bool((labels[:, :-1] == ids[:, 1:])[ahead].float().mean() >= 0.99):
            following[:, :-1] = ahead
            return following
        return None

    def packed(self) -> torch.Tensor | None:
        """[B, T]: the number of the sample that a token belongs to, where samples share a row; else None."""
        ids, valid = self[self.ids], self.valid
        for name in ("segment_ids", "sequence_ids", "document_ids"):
            numbers = self.fields.get(name)
            if isinstance(numbers, torch.Tensor) and numbers.shape == ids.shape:
                return numbers if _has_several(numbers, valid) else None
        positions = self.fields.get("position_ids")
        if not isinstance(positions, torch.Tensor):
            return None
        if positions.ndim == 3 and positions.shape[1:] == ids.shape:
            positions = positions[0]
        if positions.shape != ids.shape:
            return None
        restart = torch.zeros_like(valid)
        restart[:, 1:] = (positions[:, 1:] == 0) & (positions[:, :-1] > 0) & valid[:, 1:] & valid[:, :-1]
        numbers = restart.long().cumsum(dim=1)
        return numbers if _has_several(numbers, valid) else None


def placeholders(model: nn.Module, *others: Any) -> set[int]:
    """Token ids that stand for images and the like, as configuration and processor name them."""
    config = getattr(model, "config", None)
    found: set[int] = set()
    for place in (config, getattr(config, "text_config", None), *others):
        names = list(place) if isinstance(place, Mapping) else list(getattr(place, "__dict__", ()))
        for name in names:
            if _PLACEHOLDER.fullmatch(name.lstrip("_")):
                value = place[name] if isinstance(place, Mapping) else getattr(place, name)
                found.update(v for v in (value if isinstance(value, list | tuple) else [value]) if _is_id(v))
    return found


def _fields(model: nn.Module, batch: Any) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if hasattr(batch, "_fields"):
        return batch._asdict()
    if not isinstance(batch, tuple | list):
        return {"input": batch}
    names = [
        p.name for p in inspect.signature(model.forward).parameters.values() if p.kind < p.VAR_POSITIONAL
    ]
    names += [str(place) for place in range(len(names), len(batch))]
    return dict(zip(names, batch, strict=False))


def _has_encoder(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    places = (config, getattr(config, "text_config", None), getattr(config, "decoder", None))
    return any(getattr(place, "is_encoder_decoder", False) is True for place in places)


def _tokens(whole: dict[str, torch.Tensor]) -> str | None:
    known = next((name for name in _IDS if name in whole), None)
    others = [name for name in whole if not _NO_IDS.search(name) and name not in _LABELS]
    return known or (others[0] if len(others) == 1 else None)


def _has_several(numbers: torch.Tensor, valid: torch.Tensor) -> bool:
    return any(len(row[real].unique()) > 1 for row, real in zip(numbers, valid, strict=True))


def _is_integer(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
