"""Recognising rotary tables among a model's tensors by their numbers, and rebuilding them.

A table holds cos, sin or both of `position * theta ** (-2 i / width)`. Whatever it is called, it is one only
if it is reproduced from a `theta` that was read off its own second row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlmdoctor.knowledge.parameter_names import canonical_name

_LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "halves": lambda angles: torch.cat([angles, angles], dim=-1),
    "pairs": lambda angles: angles.repeat_interleave(2, dim=-1),
    "single": lambda angles: angles,
}
_KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cos": torch.cos,
    "sin": torch.sin,
    "complex": lambda angles: torch.polar(torch.ones_like(angles), angles),
}

# Late positions magnify the rounding of theta without telling more.
CHECKED_POSITIONS = 64


@dataclass(frozen=True)
class StoredTable:
    """A tensor of a model that is a rotary table.

    Attributes:
        owner: The module that holds it.
        attribute: Its name there.
        name: Canonical name.
        kind: `cos`, `sin`, `complex` or `frequencies` (one row, no positions).
        layout: `halves` (each angle at i and i + width/2), `pairs` (at 2i and 2i + 1) or `single`.
        theta: The base.
        tensor: The tensor itself.
    """

    owner: nn.Module
    attribute: str
    name: str
    kind: str
    layout: str
    theta: float
    tensor: torch.Tensor

    def rebuilt(self, head_dim: int) -> torch.Tensor:
        """The same table for heads of `head_dim`, with as many positions as before."""
        frequencies = _frequencies(self.theta, head_dim)
        if self.kind == "frequencies":
            return frequencies.to(self.tensor)
        positions = max(self.tensor.shape[:-1])
        values = _table(frequencies, positions, self.kind, self.layout).to(self.tensor)
        return values.reshape(*self.tensor.shape[:-1], values.shape[-1])

    def replace(self, tensor: torch.Tensor) -> None:
        """Puts `tensor` in its place."""
        registries: tuple[dict[str, Any], ...] = (self.owner._buffers, self.owner._parameters)
        for registry in registries:
            if self.attribute in registry:
                registry[self.attribute] = tensor
                return
        vars(self.owner)[self.attribute] = tensor


def stored_tables(model: nn.Module, width: int) -> list[StoredTable]:
    """The rotary tables (or their frequencies) for heads of `width` that `model` holds."""
    found = []
    for prefix, owner in model.named_modules():
        for attribute, tensor in _tensors_of(owner):
            recognised = _recognise(tensor.detach(), width)
            if recognised is not None:
                name = canonical_name(f"{prefix}.{attribute}" if prefix else attribute)
                found.append(StoredTable(owner, attribute, name, *recognised, tensor))
    return found


def _tensors_of(owner: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    places = {**vars(owner), **owner._buffers, **owner._parameters}
    for attribute, tensor in places.items():
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta and tensor.ndim > 0:
            yield attribute, tensor


def _recognise(tensor: torch.Tensor, width: int) -> tuple[str, str, float] | None:
    """(kind, layout, theta) of a rotary table of `width`; None for any other tensor."""
    if width % 2 or width < 4 or tensor.shape[-1] not in (width, width // 2):
        return None
    if tensor.ndim == 1:
        return _recognise_frequencies(tensor, width)
    positions = max(tensor.shape[:-1])
    if positions < 2 or positions * tensor.shape[-1] != tensor.numel():
        return None
    rows = tensor.reshape(positions, -1).cpu()
    if rows.is_complex():
        kind, angles = "complex", rows[1].to(torch.complex128).angle()
    elif not rows.is_floating_point():
        return None
    elif bool((rows[0] == 1).all()):
        kind, angles = "cos", rows[1].double().clamp(-1, 1).arccos()
    elif bool((rows[0] == 0).all()):
        kind, angles = "sin", rows[1].double().clamp(-1, 1).arcsin()
    else:
        return None
    checked = rows[:CHECKED_POSITIONS]
    for layout in _LAYOUTS:
        if (tensor.shape[-1] == width // 2) != (layout == "single"):
            continue
        for theta in _thetas(angles[2 if layout == "pairs" else 1], width):
            expected = _table(_frequencies(theta, width), len(checked), kind, layout)
            if torch.allclose(expected.to(checked.dtype), checked, atol=2e-2):
                return kind, layout, theta
    return None


def _recognise_frequencies(tensor: torch.Tensor, width: int) -> tuple[str, str, float] | None:
    if tensor.shape[0] != width // 2 or not tensor.is_floating_point():
        return None
    for theta in _thetas(tensor[1].double().cpu(), width):
        if torch.allclose(_frequencies(theta, width), tensor.float().cpu(), rtol=1e-2, atol=1e-6):
            return "frequencies", "single", theta
    return None


def _thetas(second_frequency: torch.Tensor, width: int) -> Iterator[float]:
    """Candidates for the base, from frequency number 1 = theta ** (-2 / width).

    A round number comes first: float32 tables give the base to four or five digits only.
    """
    frequency = float(second_frequency)
    theta = frequency ** (-width / 2) if 0 < frequency < 1 else 0.0
    if 10 < theta < 1e9:
        yield float(f"{theta:.2g}")
        yield theta


def _frequencies(theta: float, width: int) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, width, 2).float() / width)


def _table(frequencies: torch.Tensor, positions: int, kind: str, layout: str) -> torch.Tensor:
    angles = torch.outer(torch.arange(positions).float(), frequencies)
    return _KINDS[kind](_LAYOUTS[layout](angles))
