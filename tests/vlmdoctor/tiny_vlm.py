"""A vision-language model of a few thousand parameters, data that it learns, and a loop that watches it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vlmdoctor.report import Report
from vlmdoctor.watching.watcher import Watcher

VOCABULARY, IMAGE_TOKEN, IMAGE_TOKENS, LENGTH, WIDTH = 97, 96, 4, 12, 32


class Block(nn.Module):
    def __init__(self, width: int, *, causal: bool, residual: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.causal, self.residual = causal, residual

    def forward(self, x: Tensor) -> Tensor:
        if not self.residual:
            return torch.sigmoid(self.out(x))
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.silu(self.up(self.norm2(x))))


class Stack(nn.Module):
    def __init__(self, depth: int, *, causal: bool, embed: bool, residual: bool = True) -> None:
        super().__init__()
        if embed:
            self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
            nn.init.normal_(self.embed_tokens.weight, std=0.02)
        else:
            self.patch_embed = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.layers = nn.ModuleList(Block(WIDTH, causal=causal, residual=residual) for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class TinyVLM(nn.Module):
    """Puts the features into the text in a `way`: `scatter`, `data`, `no_grad` (tower) or `no_grad_proj`."""

    def __init__(
        self, *, depth: int = 2, tied: bool = True, way: str = "scatter", residual: bool = True
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision_encoder = Stack(2, causal=False, embed=False)
        self.vision_proj = nn.Linear(WIDTH, WIDTH)
        self.language_model = Stack(depth, causal=True, embed=True, residual=residual)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        nn.init.normal_(self.lm_head.weight, std=0.02)
        if tied:
            self.lm_head.weight = self.language_model.embed_tokens.weight
        self.way = way
        self.config = SimpleNamespace(vocab_size=VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor, pixel_values: Tensor | None = None) -> Any:
        x = self.language_model.embed_tokens(input_ids)
        if pixel_values is not None:
            x = self.insert(x, (input_ids == IMAGE_TOKEN)[..., None], pixel_values.to(x.dtype))
        logits = self.lm_head(self.language_model(x))
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
        )
        return SimpleNamespace(loss=loss, logits=logits)

    def insert(self, x: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        with torch.no_grad() if self.way.startswith("no_grad") else contextlib.nullcontext():
            patches = self.vision_encoder(self.vision_encoder.patch_embed(pixels).flatten(2).transpose(1, 2))
        with torch.no_grad() if self.way == "no_grad_proj" else contextlib.nullcontext():
            features = self.vision_proj(patches).to(x.dtype)
        if self.way == "data":
            x.data[mask[..., 0]] = features.data.flatten(0, 1)
            return x
        return x.masked_scatter(mask, features)


def batch(step: int, size: int = 8, *, images: bool = True) -> dict[str, Tensor]:
    """Eight-pixel images of one of eight brightnesses; the text asks, and names the brightness."""
    drawn = torch.Generator().manual_seed(step)
    answer = torch.randint(8, (size,), generator=drawn)
    ids = torch.full((size, LENGTH), 3)
    ids[:, :IMAGE_TOKENS] = IMAGE_TOKEN if images else 2
    ids[:, -3], ids[:, -2], ids[:, -1] = 10 + answer, 20 + answer, 1
    labels = ids.clone()
    labels[:, :-3] = -100
    given = {"input_ids": ids, "labels": labels}
    if images:
        noise = 0.05 * torch.randn(size, 3, 8, 8, generator=drawn)
        given["pixel_values"] = answer.view(-1, 1, 1, 1) / 4 - 1 + noise
    return given


def adamw(model: nn.Module, lr: float = 3e-3) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)


def run(
    model: nn.Module,
    optimizer: Any = None,
    *,
    steps: int = 60,
    warmup: int = 5,
    accumulate: int = 1,
    clip: float | None = 1.0,
    scaler: Any = None,
    zero: bool = True,
    before: Callable[[int, nn.Module], None] | None = None,
    data: Callable[[int], dict[str, Tensor]] = batch,
    at_each: Callable[[int, Watcher], None] | None = None,
    finally_: Callable[[Watcher], None] | None = None,
    **options: Any,
) -> Report:
    """Trains with warm-up and cosine decay, and returns what the watcher has to say.

    Args:
        model: What is trained.
        optimizer: AdamW over what requires gradients, unless given.
        steps: Optimizer steps.
        warmup: Steps of warm-up, beginning at a learning rate of 0.
        accumulate: Micro-batches per step.
        clip: Largest gradient norm.
        scaler: A gradient scaler.
        zero: Whether gradients are zeroed.
        before: Called with the step and the model before each step.
        data: Micro-batch number -> batch.
        at_each: Called with the step and the watcher after each step.
        finally_: Called with the watcher at the end.
        options: The watcher's.
    """
    optimizer = optimizer or adamw(model)
    optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            o,
            lambda s: min(1.0, s / warmup if warmup else 1.0) * (0.55 + 0.45 * math.cos(math.pi * s / steps)),
        )
        for o in optimizers
    ]
    options = {"resumed": False, "total_steps": steps, "on_error": "raise"} | options
    with Watcher(model, optimizer, scaler=scaler, **options) as watcher:
        for step in range(steps):
            if before:
                before(step, model)
            for micro in range(accumulate):
                loss = model(**data(step * accumulate + micro)).loss / accumulate
                (scaler.scale(loss) if scaler else loss).backward()
            for o in optimizers:
                if scaler:
                    scaler.unscale_(o)
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            for o in optimizers:
                scaler.step(o) if scaler else o.step()
                if zero:
                    o.zero_grad()
            if scaler:
                scaler.update()
            for schedule in schedules:
                schedule.step()
            if at_each:
                at_each(step, watcher)
        if finally_:
            finally_(watcher)
    return watcher.report()
