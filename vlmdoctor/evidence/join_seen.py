"""Catching what goes into the first decoder layer, with the batch's images and with others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.join import Join
from vlmdoctor.evidence.trials import Trials
from vlmdoctor.subject import Subject, canonical_name, layer_of, role_of
from vlmdoctor.unchanged import unchanged

FEWEST = 2  # places of each kind


def look(subject: Subject) -> Join:
    """Two passes over the batch of `subject`."""
    with unchanged(subject):
        trials = Trials(subject)
        inputs = trials.inputs
        if inputs.ids is None or inputs.reads_labels or not inputs.images:
            raise Unavailable("the batch holds no images beside token ids")
        length = inputs[inputs.ids].shape[1]
        name, own = entering(trials)
        changed = inputs.with_(**{each: _noise(inputs[each]) for each in inputs.images})
        try:
            _, other = entering(trials, changed)
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"with other images it raises {type(error).__name__}") from error
        if own.shape != other.shape:
            raise Unavailable("other images give a sequence of another length")
        moved = (own != other).any(dim=-1)
        valid = torch.ones_like(moved)
        valid[:, own.shape[1] - length :] = inputs.valid.to(moved.device)
        sizes = own.float().square().mean(dim=-1).sqrt()
        image, text = sizes[moved & valid], sizes[~moved & valid]
        if len(image) < FEWEST or len(text) < FEWEST:
            raise Unavailable("no places of the first decoder layer belong to images alone")
    return Join(name, len(image), len(text), float(image.median()), float(text.median()))


class _Seen(Exception):
    """What was looked for is there: the rest of the pass tells nothing more."""


def entering(trials: Trials, batch: Any = None) -> tuple[str, torch.Tensor]:
    """(name, input [B, T, D]) of the first block of the language model that runs; the pass ends there."""
    rows, length = trials.inputs[trials.inputs.ids].shape
    caught: list[tuple[str, torch.Tensor]] = []
    handles = []
    for raw_name, module in trials.model.named_modules():
        name = canonical_name(f"{raw_name}.").rstrip(".")
        layer, _ = layer_of(name)
        if layer != name or role_of(name) in ("vision", "projector", "head"):
            continue

        def hook(_: nn.Module, given: tuple, keywords: dict[str, Any], name: str = name) -> None:
            for value in (*given, *keywords.values()):
                if _is_hidden(value, rows, length):
                    caught.append((name, value.detach().clone()))
                    raise _Seen

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        trials.run(batch)
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not caught:
        raise Unavailable("the first layer of the language model was not found")
    return caught[0]


def _is_hidden(value: Any, rows: int, length: int) -> bool:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim != 3:
        return False
    return value.shape[0] == rows and value.shape[1] >= length


def _noise(images: torch.Tensor) -> torch.Tensor:
    """Noise as bright and as varied as the images; what is empty (padding, a stand-in) stays empty."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)).to(images.device)
    known = images.float()
    noise = known.mean() + drawn * known.std().clamp(min=1e-3)
    return torch.where(known == 0, known, noise).to(images.dtype)
