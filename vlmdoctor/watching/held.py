"""The optimizers at work on a model: known from the start or found when they step."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Held:
    """The optimizers that hold any of the model's parameters.

    Attributes:
        optimizers: They, the wrappers around them removed.
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.optimizers: list[Any] = [innermost(optimizer) for optimizer in optimizers]
        self._awaited = list(self.optimizers)
        self._known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._own: set[int] = set()
        self._size = 0
        self._rates: dict[tuple[int, int], float] = {}

    def take_parameters(self, tensors: Sequence[Tensor]) -> None:
        """Sets the model's parameters."""
        self._own = {id(tensor) for tensor in tensors}
        self._known.clear()

    def adopt(self, optimizer: Any) -> bool:
        """Whether it holds any of the model's parameters; one that does is kept."""
        known = self._known.get(optimizer)
        if known is None:
            known = any(id(t) in self._own for group in optimizer.param_groups for t in group["params"])
            self._known[optimizer] = known
            if known and not any(optimizer is other for other in self.optimizers):
                self.optimizers.append(optimizer)
        return known

    def all_stepped(self, stepped: Sequence[Any]) -> bool:
        """Whether all that stepped last time have stepped again."""
        return bool(stepped) and all(any(o is other for other in stepped) for o in self._awaited)

    def stepped(self, stepped: Sequence[Any]) -> None:
        """Notes which optimizers made a step together."""
        self._awaited = list(stepped)

    def changed(self) -> bool:
        """Whether the optimizers hold more or fewer tensors than when last asked."""
        size = sum(len(group["params"]) for o in self.optimizers for group in o.param_groups)
        changed, self._size = size != self._size, size
        return changed

    def identities(self) -> set[int]:
        """Ids of the tensors held."""
        return {id(t) for o in self.optimizers for group in o.param_groups for t in group["params"]}

    def learning_rate(self, *, on_host: bool, sampled: bool) -> float | None:
        """The first group's rate; one kept on an accelerator is read on sampled steps only."""
        first = None
        for number, optimizer in enumerate(self.optimizers):
            for place, group in enumerate(optimizer.param_groups):
                rate = group.get("lr")
                if rate is None or (isinstance(rate, Tensor) and not on_host and not sampled):
                    continue
                rate = float(rate)
                if rate > self._rates.get((number, place), -1.0):
                    self._rates[number, place] = rate
                if number == place == 0:
                    first = rate
        return first

    def highest_rates(self) -> dict[int, float]:
        """Id of a tensor -> the highest learning rate that it has had: a schedule begins or ends at 0."""
        return {
            id(tensor): self._rates[number, place]
            for number, optimizer in enumerate(self.optimizers)
            for place, group in enumerate(optimizer.param_groups)
            if (number, place) in self._rates
            for tensor in group["params"]
        }


def innermost(optimizer: Any) -> Any:
    """The optimizer that a wrapper such as accelerate's calls."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def calling_scaler() -> Any:
    """The gradient scaler that is calling the optimizer, if one is."""
    frame = sys._getframe(1)
    for _ in range(20):
        if frame is None:
            break
        # Only of this frame: reading the locals of the user's would keep what they hold alive.
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            return frame.f_locals["self"]
        frame = frame.f_back
    return None
