"""Comparing frozen weights with what torch's initialisations leave: bounds, ones and zeros."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.initialisation import FrozenWeights, Initialisation
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.subject import Subject

ROLES = ("vision", "projector", "language")
FEWEST = 64  # numbers of a matrix whose distribution can be judged
MOST = 1 << 16  # numbers of one that are looked at
NEAR = 0.9  # of the bound: one in a thousand draws of 64 numbers stays below it
SPREAD = 0.15  # by how much the root mean square may differ from that of an even distribution
_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def probe(subject: Subject, gather: Callable[[type], Any]) -> Initialisation:
    """Reads frozen weights; nothing is run."""
    if not isinstance(subject.model, nn.Module):
        raise Unavailable("no built model was given")
    model = innermost(subject.model)
    if hasattr(getattr(model, "config", None), "model_type"):
        raise Unavailable(
            "the model is built from a configuration: its weights are compared with a checkpoint"
        )
    frozen: dict[str, Counter[str]] = defaultdict(Counter)
    names: dict[str, list[str]] = defaultdict(list)
    learning: Counter[str] = Counter()
    with torch.no_grad():
        for raw, module in model.named_modules():
            for own, tensor in module.named_parameters(recurse=False):
                name = canonical_name(f"{raw}.{own}" if raw else own)
                role = role_of(name)
                if role not in ROLES:
                    continue
                if tensor.requires_grad:
                    learning[role] += 1
                elif (state := _state(module, own, tensor.data)) is not None:
                    frozen[role][state] += 1
                    frozen[role]["numbers"] += tensor.numel()
                    names[role].append(name)
    if not frozen:
        raise Unavailable("no part of the model is frozen")
    return Initialisation(
        parts=tuple(
            FrozenWeights(role=role, names=tuple(names[role]), learning=learning[role], **states)
            for role, states in frozen.items()
        )
    )


def _state(module: nn.Module, own: str, tensor: torch.Tensor) -> str | None:
    """A field of `FrozenWeights` that counts this tensor; None where it says nothing."""
    if not tensor.is_floating_point() or tensor.is_meta or tensor.element_size() < 2 or not tensor.numel():
        return None
    if "Norm" in type(module).__name__ and tensor.ndim == 1:
        if own == "weight":
            return "unit_norms" if bool((tensor == 1).all()) else "trained"
        return None if not bool(tensor.any()) else "trained"
    if isinstance(module, nn.MultiheadAttention) and own == "in_proj_weight":
        bound = math.sqrt(6.0 / sum(tensor.shape))
        return "uniform" if _fills(tensor, bound) else "unclear"
    if isinstance(module, nn.MultiheadAttention) and own == "in_proj_bias":
        return "trained" if bool(tensor.any()) else "zero_biases"
    if not isinstance(module, _MATRICES):
        return None  # tables and tokens of the user's own
    return _of_matrix(module, own, tensor)


def _of_matrix(module: nn.Module, own: str, tensor: torch.Tensor) -> str | None:
    weight: torch.Tensor = module.weight.data  # type: ignore[assignment]
    fan_in = weight[0].numel()
    if own == "weight":
        if weight.numel() < FEWEST:
            return None
        return "uniform" if any(_fills(weight, bound) for bound in _bounds(weight)) else "unclear"
    if own != "bias":
        return None
    if not bool(tensor.any()):
        return "zero_biases"
    inside = float(tensor.float().abs().max()) <= (1 + _slack(tensor)) / math.sqrt(fan_in)
    even = weight.numel() < FEWEST or any(_fills(weight, bound) for bound in _bounds(weight))
    return None if inside and even else "trained"


def _bounds(weight: torch.Tensor) -> Iterator[float]:
    """Of torch's default for layers, and of Xavier's and Kaiming's uniform initialisations."""
    receptive = weight[0][0].numel() if weight.ndim > 2 else 1
    fan_in, fan_out = weight[0].numel(), weight.shape[0] * receptive
    yield 1 / math.sqrt(fan_in)
    yield math.sqrt(6 / (fan_in + fan_out))
    yield math.sqrt(6 / fan_in)


def _fills(tensor: torch.Tensor, bound: float) -> bool:
    """Whether the values are spread evenly from -bound to bound, and none lies beyond."""
    flat = tensor.flatten()
    values = flat[:: max(1, flat.numel() // MOST)].float()
    high = float(values.abs().max())
    size = float(values.square().mean().sqrt())
    even = bound / math.sqrt(3)
    return NEAR * bound <= high <= bound * (1 + _slack(tensor)) and abs(size - even) <= SPREAD * even


def _slack(tensor: torch.Tensor) -> float:
    return 2 * torch.finfo(tensor.dtype).eps
