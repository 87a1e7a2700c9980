"""Where the variants are collected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.detection.case import Made
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of

Change = Callable[[Made], None]
VARIANTS: list[tuple[str, Change, tuple[str, ...], dict[str, Any]]] = []


def variant(*families: str, **changes: Any) -> Callable[[Change], Change]:
    """Registers a change that leaves a family's model healthy; `changes` go into its configuration."""

    def register(change: Change) -> Change:
        VARIANTS.append((change.__name__.replace("_", "-"), change, families, changes))
        return change

    return register


def as_trained(made: Made) -> None:
    """Fills what a model starts with at zero: people tune parts of a trained one, where nothing is."""
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.is_meta:  # built by a dry run
                continue
            if (parameter.ndim > 1 or parameter.numel() == 1) and not parameter.any():
                parameter.normal_(std=0.02)


def of_role(made: Made, *roles: str) -> list[torch.nn.Parameter]:
    """The parameters of parts, by their names."""
    named = made.model.named_parameters()
    return [parameter for name, parameter in named if role_of(canonical_name(name)) in roles]


def logits_of(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """What the model foretells when it makes no loss itself."""
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits
