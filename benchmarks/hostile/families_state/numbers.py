"""Counters, caches, arrays, iterators and generators of the model's own."""

from __future__ import annotations

import array
import collections
import functools
import itertools
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.hostile.families_state.tiny import WIDTH, Tiny, family, subject, touching
from vlmdoctor.subject import Subject

CALLS = 0
LOG: list[int] = []


@family
def counter() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        model.calls += 1
        model.parts.calls += 1

    return touching(touch, calls=0, parts=SimpleNamespace(calls=0))


@family
def counter_collections() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        model.lengths[x.shape[1]] += 1
        model.by_name["x"].append(1)

    return touching(touch, lengths=collections.Counter(), by_name=collections.defaultdict(list))


@family
def counter_of_class() -> Subject:
    class Counting(Tiny):
        calls = 0
        seen: list[int] = []  # noqa: RUF012 (that it is shared is the point)

        def touch(self, x: Tensor) -> Tensor:
            type(self).calls += 1
            self.seen.append(1)
            return x

    return subject(Counting())


@family
def counter_of_module() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        global CALLS
        CALLS += 1
        LOG.append(CALLS)

    return touching(touch)


@family
def counter_of_function() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        touch.calls += 1

    touch.calls = 0
    return touching(touch)


@family
def counter_in_closure() -> Subject:
    calls, seen = 0, []

    def touch(model: Any, x: Tensor) -> None:
        nonlocal calls
        calls += 1
        seen.append(calls)

    return touching(touch)


@family
def counter_in_partial() -> Subject:
    return touching(functools.partial(lambda seen, m, x: seen.append(1), []))


@family
def counter_in_default() -> Subject:
    def touch(model: Any, x: Tensor, seen: list[int] = []) -> None:  # noqa: B006 (the point)
        seen.append(1)

    return touching(touch)


@family
def cache_in_order() -> Subject:
    kept = collections.OrderedDict((n, n) for n in range(3))
    return touching(lambda m, x: m.cache.move_to_end(next(iter(m.cache))), cache=kept)


@family
def bytes_and_numbers() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        model.flags[0] += 1
        model.sizes[1] += 1

    return touching(touch, flags=bytearray(4), sizes=array.array("l", [0, 0]))


@family
def array_of_numpy() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        model.usage += 1
        model.parts["usage"][0, 1] += 1

    return touching(touch, usage=np.zeros(3), parts={"usage": np.zeros((2, 2))})


@family
def array_of_objects() -> Subject:
    held = np.empty(2, dtype=object)
    held[0] = [1]

    def touch(model: Any, x: Tensor) -> None:
        model.held[0].append(1)
        model.held[1] = object()

    return touching(touch, held=held)


@family
def iterator_count() -> Subject:
    return touching(lambda m, x: next(m.steps) and None, steps=itertools.count(1))


@family
def iterator_cycle_of_list() -> Subject:
    return touching(lambda m, x: next(m.steps) and None, steps=itertools.cycle([1, 2, 3]))


@family
def iterator_enumerate() -> Subject:
    return touching(lambda m, x: next(m.steps) and None, steps=enumerate(iter(range(10**6))))


@family
def iterator_of_list() -> Subject:
    return touching(lambda m, x: next(m.parts["steps"]) and None, parts={"steps": iter([1, 2] * 5000)})


@family
def generator_live() -> Subject:
    return touching(lambda m, x: next(m.steps) and None, steps=(n + 1 for n in range(10**6)))


@family
def generator_live_untouched() -> Subject:
    return touching(lambda m, x: None, steps=(n + 1 for n in range(10**6)))


@family
def random_torch() -> Subject:
    def touch(model: Any, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn(x.shape, generator=model.noise)

    return touching(touch, noise=torch.Generator().manual_seed(1))


@family
def random_numpy() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        model.noise.random()
        model.parts["old"].rand()

    return touching(touch, noise=np.random.default_rng(1), parts={"old": np.random.RandomState(1)})


@family
def random_python() -> Subject:
    return touching(lambda m, x: m.noise[0].random() and None, noise=[random.Random(1)])


@family
def random_in_closure() -> Subject:
    noise = torch.Generator().manual_seed(1)
    return touching(lambda m, x: x + 0.01 * torch.randn(x.shape, generator=noise))


@family
def hostile_objects() -> Subject:
    class Hostile:
        """Whoever looks at it by its own means gets an error."""

        def __init__(self) -> None:
            vars(self)["calls"] = 0

        @property
        def looked(self) -> Any:
            raise RuntimeError("do not look")

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("do not ask")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("do not compare")

        def __bool__(self) -> bool:
            raise RuntimeError("is it true?")

        def __len__(self) -> int:
            raise RuntimeError("how long?")

        def __iter__(self) -> Any:
            raise RuntimeError("do not iterate")

        __hash__ = object.__hash__

    def touch(model: Any, x: Tensor) -> None:
        vars(model.guarded[0])["calls"] += 1

    hostile = Hostile()
    return touching(touch, guarded=[hostile, {hostile: hostile}])


@family
def cycles() -> Subject:
    ring: list[Any] = [0]
    ring.append(ring)

    class Child(nn.Module):
        def __init__(self, parent: nn.Module) -> None:
            super().__init__()
            self.parent = [parent]
            self.calls = 0

    model = Tiny()
    child = Child(model)

    class Parent(Tiny):
        def touch(self, x: Tensor) -> Tensor:
            self.ring[0] += 1
            self.helper[0].calls += 1
            return x

    model = Parent()
    model.ring, model.helper = ring, [child]
    return subject(model)


@family
def long_lists() -> Subject:
    return touching(lambda m, x: m.ids.append(WIDTH), ids=list(range(200_000)))
