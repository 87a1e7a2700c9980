"""The optimizers at work on a model: known from the start or found when they step."""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

REMEMBERED = 64  # optimizers that are gone, and of which it is known what they held


def reference(value: Any) -> Callable[[], Any]:
    """A weak reference; what takes none is held."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


class _Record:
    """What is known of one optimizer, also when it is gone.

    Attributes:
        optimizer: It, while it lives.
        groups: For each group the ids of its tensors and its latest learning rate.
        highest: Group -> the highest learning rate that it has had.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = reference(optimizer)
        self.groups: list[tuple[list[int], float | None]] = []
        self.highest: dict[int, float] = {}
        self.note()

    def note(self) -> None:
        """Notes which tensors it holds now."""
        optimizer = self.optimizer()
        if optimizer is not None:
            rates = [rate for _, rate in self.groups]
            self.groups = [
                ([id(tensor) for tensor in group["params"]], rates[place] if place < len(rates) else None)
                for place, group in enumerate(optimizer.param_groups)
            ]

    def ids(self) -> set[int]:
        """Ids of all that it held."""
        return {identity for ids, _ in self.groups for identity in ids}


class OptimizerTracker:
    """The optimizers that hold any of the model's parameters. None is kept alive."""

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self._records = [_Record(innermost(optimizer)) for optimizer in optimizers]
        self._awaited = [record.optimizer for record in self._records]
        self._known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._own: set[int] = set()
        self._size = 0

    @property
    def optimizers(self) -> list[Any]:
        """They, the wrappers around them removed."""
        return [o for record in self._records if (o := record.optimizer()) is not None]

    def take_parameters(self, ids: Iterable[int]) -> None:
        """Sets the model's parameters, by their identities."""
        self._own = set(ids)
        self._known.clear()

    def adopt(self, optimizer: Any) -> bool:
        """Whether it holds any of the model's parameters; one that does is noted."""
        known = self._known.get(optimizer)
        if known is None:
            known = any(id(t) in self._own for group in optimizer.param_groups for t in group["params"])
            self._known[optimizer] = known
            if known and not any(optimizer is other for other in self.optimizers):
                self._add(_Record(optimizer))
        return known

    def all_stepped(self, stepped: Sequence[Callable[[], Any]]) -> bool:
        """Whether all that stepped last time have stepped again."""
        done = [one() for one in stepped]
        awaited = [o for one in self._awaited if (o := one()) is not None]
        return bool(done) and all(any(o is other for other in done) for o in awaited)

    def stepped(self, stepped: Sequence[Callable[[], Any]]) -> None:
        """Notes which optimizers made a step together."""
        self._awaited = list(stepped)

    def changed(self) -> bool:
        """Whether the optimizers hold more or fewer tensors than when last asked."""
        size = sum(len(group["params"]) for o in self.optimizers for group in o.param_groups)
        changed, self._size = size != self._size, size
        if changed:
            for record in self._records:
                record.note()
        return changed

    def identities(self) -> set[int]:
        """Ids of the tensors held."""
        return {id(t) for o in self.optimizers for group in o.param_groups for t in group["params"]}

    def learning_rate(self, *, on_host: bool, sampled: bool) -> float | None:
        """The first group's rate; one kept on an accelerator is read on sampled steps only."""
        first = None
        for number, record in enumerate(r for r in self._records if r.optimizer() is not None):
            for place, group in enumerate(record.optimizer().param_groups):
                rate = group.get("lr")
                if rate is None or (isinstance(rate, Tensor) and not on_host and not sampled):
                    continue
                rate = float(rate)
                if rate > record.highest.get(place, -1.0):
                    record.highest[place] = rate
                if place < len(record.groups):
                    record.groups[place] = record.groups[place][0], rate
                if number == place == 0:
                    first = rate
        return first

    def highest_rates(self) -> dict[int, float]:
        """Id of a tensor -> the highest learning rate that it has had: a schedule begins or ends at 0."""
        return {
            identity: record.highest[place]
            for record in self._records
            for place, ids in enumerate(_ids(record))
            if place in record.highest
            for identity in ids
        }

    def described(self, tensors: Iterable[Tensor]) -> list[Any]:
        """The optimizers; in place of those that are gone what they held, of these tensors, when last seen.

        What another one holds meanwhile is that one's.
        """
        own = {id(tensor): tensor for tensor in tensors}
        living, taken = self.optimizers, self.identities()
        found: list[Any] = []
        for record in self._records:
            if record.optimizer() is None:
                groups = [
                    {"params": [own[i] for i in ids if i in own and i not in taken], "lr": rate}
                    for ids, rate in record.groups
                ]
                found.append(types.SimpleNamespace(param_groups=groups))
        return [*living, *found]

    def _add(self, record: _Record) -> None:
        # One that is gone and whose tensors are all in the new one says nothing any more.
        ids = record.ids()
        kept = [old for old in self._records if old.optimizer() is not None or not old.ids() <= ids]
        gone = [old for old in kept if old.optimizer() is None]
        for old in gone[: max(0, len(gone) - REMEMBERED)]:
            kept.remove(old)
        for old in self._records:
            if old not in kept:
                for place, rate in old.highest.items():  # of a schedule that began anew
                    if place < len(record.groups) and old.groups[place][0] == record.groups[place][0]:
                        record.highest[place] = max(rate, record.highest.get(place, -1.0))
        self._records = [*kept, record]


def _ids(record: _Record) -> list[list[int]]:
    optimizer = record.optimizer()
    if optimizer is None:
        return [ids for ids, _ in record.groups]
    return [[id(tensor) for tensor in group["params"]] for group in optimizer.param_groups]


def innermost(optimizer: Any) -> Any:
    """The optimizer that a wrapper such as accelerate's calls."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def calling_scaler() -> Any:
    """The gradient scaler that is calling the optimizer, if one is."""
    frame: types.FrameType | None = sys._getframe(1)
    for _ in range(20):
        if frame is None:
            break
        # Only of this frame: reading the locals of the user's would keep what they hold alive.
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            return frame.f_locals["self"]
        frame = frame.f_back
    return None
