"""The calls of a model's modules in one forward pass, as sums that can be compared with another pass."""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.images.path import floats_in
from vlmdoctor.probes.influence.passes import COLUMNS, PassRunner

Sums = tuple[tuple[float, float], ...]

PERIOD = 4093  # of the weights; prime, so that no width of a layer is in step with it
ROUNDING, ROUNDINGS = 1e-4, 8  # of a tensor's norm: float32 through many layers; of the coarser types, steps


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        name: Canonical name.
        kind: The module's class.
        given, output: (weighted sum, sum of squares) of each tensor of floats.
        is_hidden: Whether it is given activations [B, T or more, D].
        has_weights: Whether the module itself has parameters.
        range: (least, largest, root mean square) of its first input, where it has weights.
        shapes: Shapes of the tensors of floats that it is given.
    """

    name: str
    kind: str
    given: Sums
    output: Sums
    is_hidden: bool
    has_weights: bool
    range: tuple[float, float, float] | None
    shapes: tuple[tuple[int, ...], ...]


@dataclass
class Calls:
    """All calls of a pass, in the order of their ends.

    Attributes:
        embedding: The module that is given the token ids, by its canonical name, and `raw`, its own name.
        head: The module that makes the logits.
        logits: How many logits a position has; None where that is not known.
    """

    calls: list[Call] = field(default_factory=list)
    embedding: str | None = None
    raw: str = ""
    head: str | None = None
    logits: int | None = None

    @property
    def names(self) -> list[str]:
        """The modules in that order."""
        return [call.name for call in self.calls]


def calls_of(trials: PassRunner, ids: torch.Tensor, batch: Any = None) -> Calls:
    """The calls of a pass on `batch`, by default the user's."""
    found = Calls()
    widths: list[tuple[str, int]] = []

    def hook(raw: str, name: str) -> Any:
        def heard(module: nn.Module, given: tuple, keywords: dict[str, Any], output: Any) -> None:
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.ndim == 2:
                if found.embedding is None and any(_same(v, ids) for v in given):
                    found.embedding, found.raw = name, raw
                if isinstance(output, torch.Tensor) and output.shape[-1] == weight.shape[0]:
                    widths.append((name, int(output.shape[-1])))
            found.calls.append(_call(name, module, (given, keywords), output, ids))

        return heard

    with contextlib.ExitStack() as hooks:
        for raw, module in trials.model.named_modules():
            if raw:
                name = canonical_name(f"{raw}.").rstrip(".")
                hooks.callback(module.register_forward_hook(hook(raw, name), with_kwargs=True).remove)
        logits = trials.run(batch).logits
    if logits is not None:
        # They are thinned out where there are many.
        fitting = [one for one in widths if _thinned(one[1]) == logits.shape[-1]]
        found.head, found.logits = fitting[-1] if fitting else (None, None)
        if found.logits is None and logits.shape[-1] < COLUMNS:
            found.logits = int(logits.shape[-1])
    return found


def _thinned(width: int) -> int:
    step = max(1, width // COLUMNS)
    return -(-width // step)


def _same(value: Any, ids: torch.Tensor) -> bool:
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.shape != ids.shape:
        return False
    # Some read the placeholders as another token: what most positions say counts.
    return bool((value == ids).float().mean() > 0.5)


def _call(name: str, module: nn.Module, given: Any, output: Any, ids: torch.Tensor) -> Call:
    tensors = list(floats_in(given))
    weighted = any(True for _ in module.parameters(recurse=False))
    extent = None
    if weighted and tensors and tensors[0].numel():
        low, high = tensors[0].aminmax()
        size = float(tensors[0].double().square().mean().sqrt())
        extent = (float(low), float(high), size)
    rows, length = ids.shape
    hidden = any(v.ndim == 3 and v.shape[0] == rows and v.shape[1] >= length for v in tensors)
    return Call(
        name=name,
        kind=type(module).__name__,
        given=sums(tensors),
        output=sums(floats_in(output)),
        is_hidden=hidden,
        has_weights=weighted,
        range=extent,
        shapes=tuple(tuple(value.shape) for value in tensors),
    )


def are_apart(one: Sums, other: Sums, epsilon: float) -> bool:
    """Whether two passes differ by more than rounding: the same products need not be equal bit for bit.

    Args:
        epsilon: The relative rounding of the model's numbers.
    """
    if len(one) != len(other):
        return True
    share = max(ROUNDING, ROUNDINGS * epsilon)
    return any(
        not (abs(first - second) <= share * math.sqrt(max(size, other_size)))  # NaN is apart
        or abs(size - other_size) > share * max(size, other_size)
        for (first, size), (second, other_size) in zip(one, other, strict=True)
    )


def sums(values: Any) -> Sums:
    """(sum with weights of chance, sum of squares) of each tensor.

    Without weights nothing would be seen behind a norm, which makes both sums the same for all inputs.
    """
    return tuple(_sums(value.double().flatten()) for value in values)


def _sums(value: torch.Tensor) -> tuple[float, float]:
    weights = _weights().to(value.device)
    whole = value.numel() // PERIOD * PERIOD
    rest = value[whole:]
    weighted = (value[:whole].view(-1, PERIOD) @ weights).sum() + rest @ weights[: rest.numel()]
    return float(weighted), float(value.square().sum())


@functools.cache
def _weights() -> torch.Tensor:
    return torch.randn(PERIOD, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
