"""The calls of a model's modules in one forward pass, as sums that can be compared with another pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.influence.passes import COLUMNS, PassRunner

Sums = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        name: Canonical name.
        kind: The module's class.
        given, output: (sum, sum of squares) of each tensor of floats.
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
            table = isinstance(weight, torch.Tensor) and weight.ndim == 2
            if found.embedding is None and table and any(_same(v, ids) for v in given):
                found.embedding, found.raw = name, raw
            if not isinstance(weight, torch.Tensor) or not table:
                pass
            elif isinstance(output, torch.Tensor) and output.shape[-1] == weight.shape[0]:
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
    tensors = list(_floats(given))
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
        output=sums(_floats(output)),
        is_hidden=hidden,
        has_weights=weighted,
        range=extent,
        shapes=tuple(tuple(value.shape) for value in tensors),
    )


def sums(values: Any) -> Sums:
    """(sum, sum of squares) of each tensor."""
    return tuple((float(v.double().sum()), float(v.double().square().sum())) for v in values)


def _floats(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        if values.is_floating_point():
            yield values.detach()
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _floats(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _floats(value)
