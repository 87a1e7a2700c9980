"""Finding in the user's batch what can be changed: its tokens, labels, padding and images."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.knowledge.named_parts import current
from vlmdoctor.probes.batch.nested import image_leaves, replaced
from vlmdoctor.probes.batch.roles import roles_of

STANDARD = ("input_ids", "labels", "attention_mask", "pixel_values")
_PLACEHOLDER = re.compile(
    r"(image|video|audio|vision|media|img)_?\w*token_?\w*(id|index)|(boi|eoi)_token_(id|index)"
)


class Inputs:
    """A batch by the names of its parts, so that a changed copy of it can be made.

    Attributes:
        fields: What the batch holds, by name; the parts of a tuple have the names of forward's parameters, or
            `[0]`, `[1]` where a loss function takes the tuple apart.
        ids: Name of the token ids [B, T], or None.
        reads_labels: Whether `ids` are the labels, of which an encoder-decoder makes what its decoder reads.
        labels: Name of the labels [B, T], or None.
        mask: Name of the padding mask [B, T], or None.
        hides: Whether the mask is set where padding is, and not where text is.
        images: Names of the images; inside of parts they are `pixel_values.pixel_values`, `images[0][1]`.
        leaves: The images inside of parts, by name.
        ignored: The label that the loss leaves out.
    """

    def __init__(self, model: nn.Module, batch: Any, *, apart: bool = False) -> None:
        self._kind = type(batch)
        self.fields: dict[str, Any] = _fields(model, batch, apart)
        self.leaves = image_leaves(self.fields)
        roles = roles_of(self.fields, model)
        self.ids, self.labels, self.images = roles.ids, roles.labels, [*roles.images, *self.leaves]
        self.mask, self.hides, self.ignored = roles.mask, roles.hides, roles.ignored
        self.reads_labels = False
        if _has_encoder(model):
            # What the decoder reads is made of the labels, moved one to the right, unless it is given.
            given = {name for name in ("decoder_input_ids", "labels") if _is_text(self.fields.get(name))}
            self.ids = "decoder_input_ids" if "decoder_input_ids" in given else None
            self.labels = "labels" if "labels" in given else None
            if self.ids is None and self.labels:
                self.ids, self.reads_labels = "labels", True
            shape = getattr(self.fields.get(self.ids or ""), "shape", None)
            own = getattr(self.fields.get("decoder_attention_mask"), "shape", None)
            self.mask = "decoder_attention_mask" if own is not None and own == shape else None

    def __getitem__(self, name: str | None) -> torch.Tensor:
        """A part of the batch; KeyError for one that it does not have, whose name is None."""
        if name is None:
            raise KeyError(name)
        return self.leaves[name].tensor if name in self.leaves else self.fields[name]

    def with_(self, **changed: Any) -> Any:
        """A batch like the user's with these parts changed; a part of None is left out of a mapping."""
        fields = dict(self.fields)
        for name, value in changed.items():
            leaf = self.leaves.get(name)
            if leaf is None:
                fields[name] = value
            else:
                fields[leaf.part] = replaced(fields[leaf.part], leaf.path, value)
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
            return ids != IGNORE_INDEX
        if self.mask is None:
            return torch.ones_like(ids, dtype=torch.bool)
        return self[self.mask] == 0 if self.hides else self[self.mask].bool()

    def images_of(self, fields: Mapping[str, Any]) -> Iterator[Any]:
        """The images in `fields`, which hold what `fields` of this batch do, or a part of its rows."""
        leaves = image_leaves(fields)
        for name in self.images:
            if name not in self.leaves:
                yield fields[name]
        yield from (leaf.tensor for leaf in leaves.values())

    def predicting(self) -> torch.Tensor | None:
        """[B, T]: where the logits are compared with a label that is the next token.

        None where the labels are not the tokens (masked-language models and diffusion learn another way).
        """
        if self.labels is None or self[self.labels].shape != self[self.ids].shape:
            return None
        ids, labels = self[self.ids], self[self.labels]
        if labels.device != ids.device:
            return None
        supervised = (labels != self.ignored) & self.valid
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


def standard(model: nn.Module, batch: Any, loss_fn: Any = None) -> Mapping[str, Any]:
    """The batch under the names that transformers has for its parts, whatever its own are.

    Its other parts keep their names. Labels that are left out are `IGNORE_INDEX`; a mask is 1 where there
    is text.
    """
    if _has_usual_names(model, batch):
        return batch
    inputs = Inputs(model, batch, apart=loss_fn is not None)
    found = dict(inputs.fields)
    if inputs.reads_labels or inputs.ids == "decoder_input_ids":
        return found
    images = inputs.images[0] if inputs.images else None
    if images in inputs.leaves:
        images, found["pixel_values"] = None, _together([leaf.tensor for leaf in inputs.leaves.values()])
    for name, own in zip(STANDARD, (inputs.ids, inputs.labels, inputs.mask, images), strict=True):
        if own is None or name in found:
            continue
        value = found.pop(own)
        if name == "labels" and inputs.ignored != IGNORE_INDEX:
            value = value.masked_fill(value == inputs.ignored, IGNORE_INDEX)
        found[name] = inputs.valid.long() if name == "attention_mask" else value
    return found


def _together(images: list[torch.Tensor]) -> Any:
    """The images of all parts as one tensor [N, C, H, W] where they are of one size, else as a list."""
    alike = len({tuple(image.shape[-3:]) for image in images}) == 1 and min(i.ndim for i in images) >= 3
    flat = [image.reshape(-1, *image.shape[-3:]) for image in images] if alike else []
    if flat:
        return torch.cat(flat)
    return images[0] if len(images) == 1 else images


def own_names(model: nn.Module, batch: Any, loss_fn: Any = None) -> dict[str, str]:
    """What the batch calls its parts, by the names of `standard`, where it has other names for them."""
    if _has_usual_names(model, batch):
        return {}
    inputs = Inputs(model, batch, apart=loss_fn is not None)
    images = inputs.images[0] if inputs.images else None
    own = dict(zip(STANDARD, (inputs.ids, inputs.labels, inputs.mask, images), strict=True))
    return {name: mine for name, mine in own.items() if mine and name not in inputs.fields}


def placeholders(model: nn.Module, *others: Any) -> set[int]:
    """Token ids that stand for images and the like, as configuration, processor and user name them."""
    config = getattr(model, "config", None)
    said = current().image_token_id
    found: set[int] = set() if said is None else {said}
    for place in (config, getattr(config, "text_config", None), *others):
        names = list(place) if isinstance(place, Mapping) else list(getattr(place, "__dict__", ()))
        for name in names:
            if _PLACEHOLDER.fullmatch(name.lstrip("_")):
                value = place[name] if isinstance(place, Mapping) else getattr(place, name)
                found.update(v for v in (value if isinstance(value, list | tuple) else [value]) if _is_id(v))
    return found


def _fields(model: nn.Module, batch: Any, apart: bool) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if hasattr(batch, "_fields"):
        return batch._asdict()
    if not isinstance(batch, tuple | list):
        return {"input": batch}
    # What a loss function takes apart need not be in the order of forward's parameters.
    known = () if apart else inspect.signature(model.forward).parameters.values()
    names = [p.name for p in known if p.kind < p.VAR_POSITIONAL]
    names += [f"[{place}]" for place in range(len(names), len(batch))]
    return dict(zip(names, batch, strict=False))


def _has_usual_names(model: nn.Module, batch: Any) -> bool:
    usual = isinstance(batch, Mapping) and "input_ids" in batch and _is_of_transformers(model)
    return usual and current().labels is None


def _is_of_transformers(model: Any) -> bool:
    return hasattr(getattr(model, "config", None), "model_type")


def _has_encoder(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    places = (config, getattr(config, "text_config", None), getattr(config, "decoder", None))
    return any(getattr(place, "is_encoder_decoder", False) is True for place in places)


def _has_several(numbers: torch.Tensor, valid: torch.Tensor) -> bool:
    return any(len(row[real].unique()) > 1 for row, real in zip(numbers, valid, strict=True))


def _is_text(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2 and value.dtype in (torch.int64, torch.int32)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
