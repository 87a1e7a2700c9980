"""Losses with a state of their own: weights, statistics, counters, generators."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.hostile.families_state.tiny import VOCABULARY, Tiny, family, loss_of, subject
from vlmdoctor.subject import Subject


class LearnedLoss(nn.Module):
    """A loss with a temperature, statistics of the logits, and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm1d(VOCABULARY, affine=False)
        self.calls = 0

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        logits = model(batch["input_ids"])["logits"] * self.temperature
        self.norm(logits.transpose(1, 2))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


@family
def loss_module() -> Subject:
    return subject(Tiny(), loss_fn=LearnedLoss())


@family
def loss_module_with_a_gradient() -> Subject:
    loss = LearnedLoss()
    loss.temperature.grad = torch.ones(())
    return subject(Tiny(), loss_fn=loss)


@family
def loss_bound_method() -> Subject:
    return subject(Tiny(), loss_fn=LearnedLoss().forward)


@family
def loss_in_the_optimizer() -> Subject:
    model, loss = Tiny(), LearnedLoss()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1, momentum=0.9)
    return subject(model, loss_fn=loss, optimizer=optimizer)


@family
def loss_closure() -> Subject:
    inner, seen = LearnedLoss(), []

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        seen.append(1)
        return inner(model, batch)

    return subject(Tiny(), loss_fn=loss_fn)


@family
def loss_partial() -> Subject:
    return subject(Tiny(), loss_fn=functools.partial(lambda inner, m, b: inner(m, b), LearnedLoss()))


@family
def loss_object_with_average() -> Subject:
    class Weighted:
        def __init__(self) -> None:
            self.average = {"loss": torch.ones(())}
            self.noise = torch.Generator().manual_seed(3)

        def __call__(self, model: nn.Module, batch: Any) -> Tensor:
            loss = loss_of(model, batch)
            self.average["loss"] = 0.9 * self.average["loss"] + 0.1 * loss.detach()
            return loss / self.average["loss"] + 0 * torch.rand((), generator=self.noise)

    return subject(Tiny(), loss_fn=Weighted())


@family
def loss_of_a_weight_that_nobody_holds() -> Subject:
    weight = nn.Parameter(torch.ones(()))
    return subject(Tiny(), loss_fn=lambda model, batch: loss_of(model, batch) * weight)
