"""Optimizers and schedulers with a state of their own, and a Trainer."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import nn

from benchmarks.hostile.families_state.tiny import Tiny, batch, family, subject
from vlmdoctor.subject import Subject


@family
def scheduler_with_a_count() -> Subject:
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    calls: list[int] = []
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: calls.append(step) or 0.99**step)
    return subject(model, optimizer=optimizer, lr_scheduler=rates)


@family
def optimizer_around_another() -> Subject:
    class Noisy(torch.optim.SGD):
        steps = 0

        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, lr=0.01, momentum=0.9)
            self.noise, self.norms = torch.Generator().manual_seed(1), []

        def step(self, closure: Any = None) -> Any:
            type(self).steps += 1
            self.norms.append(float(torch.rand(1, generator=self.noise)))
            return super().step(closure)

    model = Tiny()
    return subject(model, optimizer=Noisy(model.parameters()))


@family
def optimizer_with_hooks() -> Subject:
    model, seen = Tiny(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    return subject(model, optimizer=optimizer)


@family
def optimizer_in_backward() -> Subject:
    model = Tiny()
    inner = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()}

    def step(parameter: Any) -> None:
        inner[parameter].step()
        inner[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    return subject(model)


@family
def trainer_of_transformers() -> Subject:
    from transformers import Trainer, TrainingArguments

    made = batch()
    rows = [{name: value[i % 2] for name, value in made.items()} for i in range(8)]
    arguments = TrainingArguments(tempfile.gettempdir(), report_to=[], use_cpu=True, disable_tqdm=True)
    return Subject(Trainer(Tiny(), arguments, train_dataset=rows))


@family
def weights_shared_with_a_graph() -> Subject:
    """A loss that was made before, whose backward pass is still to come."""
    made = subject(Tiny())
    made.model.pending = [made.model(**made.batch)["loss"]]
    return made


@family
def embedding_with_a_largest_norm() -> Subject:
    model = Tiny()
    model.embed_tokens = nn.Embedding(20, 8, max_norm=0.5)
    return subject(model)
