"""How many image features a model puts into the text: asked of the model itself, without weights."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from vlmdoctor.dryrun.abstract import Abstract


def features_of(model: Any, inputs: dict[str, torch.Tensor]) -> int | None:
    """Features that the model's own `get_image_features` makes of `inputs`; None where it has none.

    `model` has to be on the meta device.
    """
    nested = model.modules() if isinstance(model, torch.nn.Module) else ()
    candidates = (model, getattr(model, "model", None), *nested)
    owner = next((m for m in candidates if hasattr(m, "get_image_features")), None)
    if owner is None or not inputs:
        return None
    if owner not in candidates[:2] and inputs["pixel_values"].ndim == 5:  # a whole VLM within an agent (π0)
        inputs = {**inputs, "pixel_values": inputs["pixel_values"].flatten(0, 1)}
    accepted = inspect.signature(owner.get_image_features).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    if "image_patches" in inputs and "image_patches" not in accepted:  # Fuyu's two names for them
        inputs = {**inputs, "pixel_values": inputs["image_patches"]}
    given = {name: value for name, value in inputs.items() if name in accepted or takes_all}
    with torch.no_grad(), Abstract():
        found = owner.get_image_features(**given)
    return _rows(found)


def _rows(found: Any) -> int | None:
    pooled = getattr(found, "pooler_output", None)
    if pooled is not None:
        return _rows(pooled)
    if isinstance(found, torch.Tensor):
        return found.numel() // found.shape[-1]
    if isinstance(found, list | tuple) and found:
        # A tuple is an output with its extras behind; a list has one entry for each image.
        if isinstance(found, tuple) and not all(
            isinstance(f, torch.Tensor) and f.shape[-1] == found[0].shape[-1] for f in found
        ):
            return _rows(found[0])
        counts = [_rows(part) for part in found]
        return sum(count for count in counts if count is not None)
    deep = getattr(found, "deepstack_features", None)
    if isinstance(deep, list) and deep and isinstance(deep[0], tuple):
        # Granite: (layer of the text, features for it), as many for each layer.
        return _rows(deep[0][1])
    last = getattr(found, "last_hidden_state", None)
    return None if last is None else _rows(last)
