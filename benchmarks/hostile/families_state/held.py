"""Tensors in containers and objects: shadows, queues, encoders, batch norms that are not registered."""

from __future__ import annotations

import collections
import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.hostile.families_state.tiny import WIDTH, Tiny, family, subject, touching
from vlmdoctor.subject import Subject


def _move(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.mul_(0.9).add_(0.1)


@family
def ema_in_dict() -> Subject:
    return touching(
        lambda m, x: [_move(t) for t in m.shadow.values()] and None,
        shadow={"a": torch.zeros(3), "b": torch.ones(2)},
    )


@family
def ema_in_list() -> Subject:
    return touching(lambda m, x: _move(m.shadow[1]), shadow=[torch.zeros(3), torch.ones(2)])


@family
def ema_in_nested_tuple() -> Subject:
    return touching(lambda m, x: _move(m.shadow[0]["w"][1]), shadow=({"w": [None, torch.zeros(4)]},))


@family
def ema_object() -> Subject:
    class Average:
        def __init__(self) -> None:
            self.values, self.updates = [torch.zeros(3)], 0

        def update(self) -> None:
            _move(self.values[0])
            self.updates += 1

    return touching(lambda m, x: m.average.update(), average=Average())


@family
def ema_dataclass() -> Subject:
    @dataclasses.dataclass
    class Average:
        value: Tensor
        updates: int = 0

    def touch(model: Any, x: Tensor) -> None:
        model.average.value = model.average.value * 0.9 + 0.1
        model.average.updates += 1

    return touching(touch, average=Average(torch.zeros(3)))


@family
def ema_slots() -> Subject:
    class Average:
        __slots__ = ("unset", "updates", "value")

        def __init__(self) -> None:
            self.value, self.updates = torch.zeros(3), 0

    def touch(model: Any, x: Tensor) -> None:
        _move(model.average.value)
        model.average.updates += 1
        model.average.unset = 1

    return touching(touch, average=Average())


@family
def ema_whole_model() -> Subject:
    model = Tiny()
    twin = copy.deepcopy(model)

    class Averaged(Tiny):
        def touch(self, x: Tensor) -> Tensor:
            for mine, shadow in zip(self.parameters(), self.twins[0].parameters(), strict=True):
                shadow.data.lerp_(mine.data, 0.1)
            return x

    model = Averaged()
    model.twins = [twin]
    return subject(model)


@family
def queue_deque() -> Subject:
    return touching(
        lambda m, x: m.queue.append(x.detach().mean(0)), queue=collections.deque([torch.zeros(1)], maxlen=3)
    )


@family
def queue_list_of_features() -> Subject:
    return touching(lambda m, x: m.bank.append(x.detach()), bank=[])


@family
def moco_queue_and_pointer() -> Subject:
    class Moco(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("queue", torch.zeros(4, WIDTH))
            self.pointer = 0

        def touch(self, x: Tensor) -> Tensor:
            self.queue[self.pointer] = x.detach().mean((0, 1))
            self.pointer = (self.pointer + 1) % 4
            return x

    return subject(Moco())


@family
def moco_momentum_encoder() -> Subject:
    class Moco(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.momentum = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

        def touch(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.momentum.weight.lerp_(self.block.weight, 0.01)
            return x + 0 * self.momentum(x)

    return subject(Moco())


@family
def set_of_tensors() -> Subject:
    return touching(lambda m, x: [_move(t) for t in m.held] and None, held={torch.zeros(2), torch.ones(2)})


@family
def tensor_on_a_parameter() -> Subject:
    made = touching(lambda m, x: _move(m.block.weight.shadow))
    made.model.block.weight.shadow = torch.zeros(3)
    return made


@family
def batch_norm_in_list() -> Subject:
    return touching(lambda m, x: m.norms[0](x.transpose(1, 2)).transpose(1, 2), norms=[nn.BatchNorm1d(WIDTH)])


@family
def batch_norm_in_dict() -> Subject:
    return touching(
        lambda m, x: m.norms["a"](x.transpose(1, 2)).transpose(1, 2), norms={"a": nn.BatchNorm1d(WIDTH)}
    )


@family
def batch_norm_in_object() -> Subject:
    return touching(
        lambda m, x: m.parts.norm(x.transpose(1, 2)).transpose(1, 2),
        parts=SimpleNamespace(norm=nn.BatchNorm1d(WIDTH)),
    )


@family
def batch_norm_in_closure() -> Subject:
    norm = nn.BatchNorm1d(WIDTH)
    return touching(lambda m, x: norm(x.transpose(1, 2)).transpose(1, 2))


@family
def gradient_of_a_hidden_parameter() -> Subject:
    hidden = nn.Parameter(torch.ones(WIDTH))
    hidden.grad = torch.ones(WIDTH)
    return touching(lambda m, x: x * m.parts.scale, parts=SimpleNamespace(scale=hidden))


@family
def weight_in_closure() -> Subject:
    scale = torch.ones(WIDTH, requires_grad=True)
    return touching(lambda m, x: x * scale)


@family
def buffer_made_anew_and_resized() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        model.seen = torch.cat([model.seen, x.detach().mean((0, 1))[None]])
        model.block.weight.data = model.block.weight.data.clone()

    return touching(touch, seen=torch.zeros(1, WIDTH))


@family
def expanded_buffer() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        model.wide[0].add_(1)

    return touching(touch, wide=torch.zeros(1, 3).expand(4, 3))


@family
def hooks_and_modules_added() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        model.block.register_forward_hook(lambda *_: None)
        if model.block.weight.requires_grad:
            model.block.weight.register_hook(lambda g: g)
        model.add_module(f"extra{len(list(model.children()))}", nn.Linear(1, 1))
        model.lm_head.training = False

    return touching(touch)
