"""A small model with an image, a loop, and comparisons for the tests of watching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

VOCABULARY, WIDTH = 40, 16


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(torch.relu(self.up(self.norm(x)))))


class Model(nn.Module):
    """An image and some tokens in, a loss out; dropout and batch norm make its passes impure."""

    def __init__(self, layers: int = 2, *, tied: bool = False, sparse: bool = False) -> None:
        super().__init__()
        self.vision_encoder = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Flatten(2))
        self.vision_proj = nn.Linear(8, WIDTH)
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH, sparse=sparse)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: int | None = None,
    ) -> Any:
        seen = self.vision_proj(self.vision_encoder(pixel_values).transpose(1, 2)).mean(1, keepdim=True)
        x = self.embed_tokens(input_ids) + seen
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(x)
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), reduction="sum" if num_items_in_batch else "mean"
        )
        if num_items_in_batch:
            loss = loss / num_items_in_batch
        return Output(loss, logits)


def make_batch(generator: torch.Generator | None = None, size: int = 3) -> dict[str, Tensor]:
    """A random batch, the first label of each sample ignored; a generator leaves the global state alone."""
    ids = torch.randint(0, VOCABULARY, (size, 6), generator=generator)
    labels = ids.clone()
    labels[:, 0] = -100
    pixels = torch.randn(size, 3, 8, 8, generator=generator)
    return {"input_ids": ids, "pixel_values": pixels, "labels": labels}


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **{"lr": 1e-2, **options})


def run(
    model: nn.Module,
    optimizer: Any,
    steps: int,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    after: Callable[[int, float], None] | None = None,
) -> list[float]:
    """A plain training loop on random batches from the global generator; returns the losses."""
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            loss = model(**make_batch()).loss / accumulate
            loss.backward()
            losses.append(float(loss.detach()))
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if after is not None:
            after(step, losses[-1])
    return losses


def hooks_on(model: nn.Module) -> int:
    """How many hooks there are on the model, its parameters and torch's optimizers at large."""
    count = len(optimizers._global_optimizer_pre_hooks) + len(optimizers._global_optimizer_post_hooks)
    for module in model.modules():
        count += sum(len(value) for name, value in vars(module).items() if name.endswith("_hooks"))
    for parameter in model.parameters():
        count += len(parameter._backward_hooks or ()) + len(parameter._post_accumulate_grad_hooks or ())
    return count
