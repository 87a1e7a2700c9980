"""What is examined in the benchmark: a model as people hand it in, healthy or with one fault in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlmdoctor.subject import Subject


@dataclass
class Made:
    """A model with its batch, and where its parts are; `more` are further fields of the Subject.

    Attributes:
        model: In training mode.
        batch: What it is called with.
        parts: Names of modules by part: `vision`, `projector`, `language`, `layers`, `embed`, `head`.
        loss_fn: Where the loss is made outside of the model.
        more: Such as `optimizer`; without one it is AdamW over what requires gradients.
    """

    model: nn.Module
    batch: Any
    parts: dict[str, str] = field(default_factory=dict)
    loss_fn: Callable[[Any, Any], Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, part: str) -> nn.Module:
        """The module of a part."""
        return self.model.get_submodule(self.parts[part])

    def subject(self) -> Subject:
        """What is given to the doctor."""
        if "optimizer" not in self.more:
            self.more["optimizer"] = adamw(self.model)
        return Subject(self.model, batch=self.batch, loss_fn=self.loss_fn, **self.more)


@dataclass(frozen=True)
class Case:
    """One row of the benchmark.

    Attributes:
        name: Unique, such as `vlm/llava` or `E03-no-grad-tower/llava`.
        family: The model's.
        make: Builds it, always the same.
        fault: The name of the planted fault; None where it is healthy.
        planted: How, in one line.
        rules: The rules that name the right cause: names, codes, or prefixes of codes that end in `*`.
        at: Texts of which one has to stand in the finding for it to be located; empty where it has no place.
    """

    name: str
    family: str
    make: Callable[[], Subject]
    fault: str | None = None
    planted: str = ""
    rules: tuple[str, ...] = ()
    at: tuple[str, ...] = ()


def adamw(model: nn.Module, lr: float = 1e-3) -> torch.optim.Optimizer | None:
    """AdamW over what requires gradients; None where nothing does."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(learning, lr=lr) if learning else None
