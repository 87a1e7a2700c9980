"""A checkpoint that fits its model, for the rules' examples, and the texts that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from vlmdoctor.evidence.checkpoint import Checkpoint, Weight
from vlmdoctor.rules._healthy import sample_parameters

NOT_LOADED: dict[str, Any] = {"equal": False, "agreement": 0.01, "distance": 1.4}
ABSENT: dict[str, Any] = {
    "key": None,
    "key_shape": None,
    "equal": None,
    "agreement": None,
    "distance": None,
    "fresh": True,
}


def sample_checkpoint(change: Callable[[Weight], dict[str, Any]] | None = None, **fields: Any) -> Checkpoint:
    """The checkpoint of `sample_parameters`, all loaded, with `change` applied to each weight."""
    weights = []
    for parameter in sample_parameters().parameters:
        weight = Weight(
            name=parameter.name,
            role=parameter.role,
            shape=parameter.shape,
            key=parameter.name,
            key_shape=parameter.shape,
            equal=True,
            agreement=1.0,
            distance=0.0,
        )
        weights.append(dataclasses.replace(weight, **(change(weight) if change else {})))
    known: dict[str, Any] = {"shown": "run/checkpoint", "unplaced": {}}
    tensors = sum(weight.key is not None for weight in weights)
    return Checkpoint(tensors=tensors, weights=tuple(weights), **(known | fields))


def called(role: str) -> str:
    """A role's name in messages."""
    names = {"vision": "the vision encoder", "language": "the language model", "other": "the rest"}
    return names.get(role, f"the {role}")


def share(part: Iterable[Weight], whole: Iterable[Weight]) -> float:
    """How much of `whole` is in `part`, by numbers held, 0 to 1."""
    total = sum(weight.numel for weight in whole)
    return sum(weight.numel for weight in part) / total if total else 0.0
