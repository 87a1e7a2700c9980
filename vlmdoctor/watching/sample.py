"""One sampled step: what was gathered on the device, read in one copy and put in order."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from vlmdoctor.evidence.steps import Step
from vlmdoctor.watching.index import Index
from vlmdoctor.watching.measure import Number, to_host
from vlmdoctor.watching.movement import Moved


@dataclass
class Gathered:
    """What a step's hooks left on the device; places are those of the parameters in the index.

    Attributes:
        norms: Place -> gradient norm at the end of backward, still scaled.
        after: Place -> gradient norm as the optimizer got it.
        scalars: `scale` of the norms, `scale_after` of those after, `skipped`, `residue`.
        supervised: Numbers of supervised labels, one for each micro-batch.
    """

    norms: dict[int, Number] = field(default_factory=dict)
    after: dict[int, Number] = field(default_factory=dict)
    scalars: dict[str, Tensor] = field(default_factory=dict)
    supervised: list[Tensor] = field(default_factory=list)

    def read(self, moved: Moved, index: Index, trainable: np.ndarray) -> HostSample:
        """Copies everything to the host at once."""
        parts: list[list[Any]] = [
            list(self.scalars.values()),
            self.supervised,
            list(self.norms.values()),
            list(self.after.values()),
            moved.updates,
            moved.weights,
            moved.changed,
        ]
        scalars, labels, norms, after, updates, weights, changed = _read(parts)
        facts = dict(zip(self.scalars, scalars.tolist(), strict=True))
        count = len(index.names)
        scale = facts.get("scale", 1.0)
        sizes = np.array(moved.sizes, dtype=np.float64)
        return HostSample(
            facts=facts,
            trainable=trainable,
            has_gradient=_spread(count, list(self.norms), np.ones(len(norms)), 0.0).astype(bool),
            grad_norms=_spread(count, list(self.norms), norms / scale, np.nan),
            norm_after=math.sqrt(after @ after) / facts.get("scale_after", 1.0) if len(after) else None,
            measured=_spread(count, moved.places, sizes, 0.0),
            updates=_spread(count, moved.places, np.sqrt(updates), np.nan),
            weights=_spread(count, moved.places, np.sqrt(weights), np.nan),
            changed=_spread(count, moved.places, changed, np.nan),
            supervised=int(labels.sum()) if len(labels) else None,
        )


@dataclass
class HostSample:
    """The same as plain numbers; arrays are over the parameters of the index."""

    facts: dict[str, float]
    trainable: np.ndarray
    has_gradient: np.ndarray
    grad_norms: np.ndarray
    norm_after: float | None
    measured: np.ndarray
    updates: np.ndarray
    weights: np.ndarray
    changed: np.ndarray
    supervised: int | None

    @property
    def skipped(self) -> bool:
        """Whether the scaler made the optimizer pass the step over."""
        return self.facts.get("skipped", 0.0) > 0

    @property
    def update_ratios(self) -> np.ndarray:
        """[N] norm of the update over that of the weights, NaN where not measured."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.updates / self.weights

    @property
    def changed_share(self) -> np.ndarray:
        """[N] share of the measured elements that changed, NaN where not measured."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.changed / self.measured

    def completes(self, step: Step, index: Index) -> Step:
        """`step` with what was measured in it."""
        squares = np.where(self.has_gradient, self.grad_norms**2, 0.0)
        here = self.measured > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            grown = index.sizes / self.measured  # a sample stands for the whole of its tensor
            updates = index.by_role(self.updates**2 * grown, here)
            weights = index.by_role(self.weights**2 * grown, here)
        return dataclasses.replace(
            step,
            grad_norm=float(np.sqrt(squares[self.trainable].sum())),
            grad_norm_after=self.norm_after,
            role_grad_norms=index.by_role(squares, self.trainable),
            layer_grad_norms=index.by_layer(squares, self.trainable),
            role_update_ratios={role: updates[role] / weights[role] for role in updates if weights[role] > 0},
            supervised_tokens=self.supervised,
        )


def _read(parts: list[list[Number]]) -> list[np.ndarray]:
    """Each part as numbers, vectors and scalars joined; what is read already is not read again."""
    unread = [[value for value in part if isinstance(value, Tensor)] for part in parts]
    numbers = to_host([value for part in unread for value in part])
    found, start = [], 0
    for part, new in zip(parts, unread, strict=True):
        end = start + sum(value.numel() for value in new)
        # A part holds either tensors or numbers.
        values = numbers[start:end] if new else [value for value in part if isinstance(value, float)]
        start = end
        found.append(np.array(values, dtype=np.float64))
    return found


def _spread(count: int, places: list[int], values: np.ndarray, missing: float) -> np.ndarray:
    found = np.full(count, missing)
    found[places] = values
    return found
