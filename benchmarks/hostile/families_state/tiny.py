"""A model of a few hundred parameters whose forward pass calls a hook of the family; the list of families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlmdoctor.subject import Subject

FAMILIES: dict[str, Callable[[], Subject]] = {}
VOCABULARY, WIDTH = 20, 8


def family(make: Callable[[], Subject]) -> Callable[[], Subject]:
    """Registers a family by the name of its function."""
    FAMILIES[make.__name__.replace("_", "-")] = make
    return make


class Tiny(nn.Module):
    """Embedding, a block, a head; `touch` is what a family does in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.block = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY)

    def touch(self, x: Tensor) -> Tensor:
        """Does nothing here."""
        return x

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        x = self.embed_tokens(input_ids)
        x = x + torch.tanh(self.block(self.touch(x)))
        logits = self.lm_head(x)
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def batch() -> dict[str, Tensor]:
    """Two rows of six tokens."""
    ids = torch.randint(0, VOCABULARY, (2, 6))
    return {"input_ids": ids, "labels": ids.clone()}


def subject(model: nn.Module, **more: Any) -> Subject:
    """The model with a batch and AdamW, which has taken a step already, and gradients in the making."""
    given = {"batch": batch(), **more}
    if "optimizer" not in given:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step()
        given["optimizer"] = optimizer
    return Subject(model, **given)


def touching(touch: Callable[[Any, Tensor], Tensor | None], **attributes: Any) -> Subject:
    """A Tiny with these attributes whose forward pass calls `touch(model, x)`."""

    class Touching(Tiny):
        def touch(self, x: Tensor) -> Tensor:
            changed = touch(self, x)
            return x if changed is None else changed

    model = Touching()
    for name, value in attributes.items():
        setattr(model, name, value)
    return subject(model)


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """The plain loss."""
    return model(**batch)["loss"]
