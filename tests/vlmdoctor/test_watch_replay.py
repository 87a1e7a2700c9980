"""The pass that is run once more to explain a NaN leaves nothing behind: the run goes on as if unwatched."""

from __future__ import annotations

import collections
import io
import random
import types

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vlmdoctor.watching.watcher import Watcher

WIDTH = 6


class Stateful(nn.Module):
    """Adds to a linear layer something that it keeps from pass to pass; `kind` says what."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, nn.Linear(WIDTH, WIDTH)
        self.passes, self.spoil = 0, False
        self.queue = collections.deque(maxlen=3)
        self.shadow = [torch.zeros(WIDTH)]
        self.memory = {"mean": torch.zeros(WIDTH), "history": []}
        self.own = types.SimpleNamespace(value=torch.zeros(WIDTH), count=0)
        self.array = np.zeros(WIDTH)
        self.torch_generator = torch.Generator().manual_seed(3)
        self.numpy_generator = np.random.default_rng(4)
        self.python_generator = random.Random(5)
        self.register_buffer("running", torch.zeros(WIDTH))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.hidden = [nn.BatchNorm1d(WIDTH)]  # not registered
        self.table = nn.Embedding(4, WIDTH, max_norm=0.5)
        self.__dict__["outside"] = torch.zeros(WIDTH)
        count = 0

        def counting(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return output * (1 + count / 8)

        if kind == "closure":
            self.inner.register_forward_hook(counting)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        x = x + self.shift(self.inner(x))
        return x / (x * 0) if self.spoil else x

    def shift(self, x: Tensor) -> Tensor | float:
        with torch.no_grad():
            mean = x.mean(0).nan_to_num()
            return getattr(self, f"_{self.kind}")(x, mean)

    def _closure(self, x, mean):
        return 0.0

    def _counter(self, x, mean):
        return 0.1 * self.passes

    def _queue(self, x, mean):
        self.queue.append(mean)
        return sum(self.queue)

    def _in_place_list(self, x, mean):
        self.shadow[0].mul_(0.5).add_(mean)
        return self.shadow[0]

    def _dictionary(self, x, mean):
        self.memory["mean"] = self.memory["mean"] + mean
        self.memory["history"].append(float(mean.sum()))
        return self.memory["mean"] + len(self.memory["history"])

    def _object(self, x, mean):
        self.own.value += mean
        self.own.count += 1
        return self.own.value * self.own.count

    def _array(self, x, mean):
        self.array += mean.numpy()
        return torch.from_numpy(self.array).float()

    def _view_of_a_buffer(self, x, mean):
        self.running.numpy()[...] += mean.numpy()
        return self.running.clone()

    def _torch_generator(self, x, mean):
        return torch.rand(WIDTH, generator=self.torch_generator)

    def _numpy_generator(self, x, mean):
        return float(self.numpy_generator.random())

    def _python_generator(self, x, mean):
        return self.python_generator.random()

    def _global_generators(self, x, mean):
        return torch.rand(WIDTH) + random.random() + float(np.random.rand())

    def _batch_norm(self, x, mean):
        return self.norm(x) + self.norm.running_mean

    def _hidden_batch_norm(self, x, mean):
        return self.hidden[0](x) + self.hidden[0].running_mean

    def _weight(self, x, mean):
        self.inner.weight.data.mul_(0.99)
        return 0.0

    def _weight_in_place(self, x, mean):
        self.table.weight.add_(mean)
        return self.table.weight.sum(0)

    def _renormed(self, x, mean):
        self.table.weight.mul_(3)
        return self.table(torch.tensor([0, 1]))[0]

    def _attribute(self, x, mean):
        self.outside = self.outside + mean
        return self.outside

    def _class_attribute(self, x, mean):
        type(self).seen = getattr(type(self), "seen", 0) + 1
        return 0.1 * type(self).seen

    def _new_attribute(self, x, mean):
        self.late = getattr(self, "late", 0) + 1
        return 0.1 * self.late


KINDS = sorted(name[1:] for name, value in vars(Stateful).items() if name[0] == "_" and name[1] != "_")


class Model(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.stateful, self.last = (
            nn.Linear(WIDTH, WIDTH),
            Stateful(kind),
            nn.Linear(WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.last(self.stateful(self.first(x))).square().mean()}


def trained(kind: str, watched: bool, *, backward: bool) -> list[object]:
    if hasattr(Stateful, "seen"):
        del Stateful.seen
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    model = Model(kind)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    watcher = Watcher(model, optimizer, every=1, on_error="raise") if watched else None
    spoiled = 1.0
    if backward:
        # Finite forwards; the gradient is not.
        model.last.register_forward_pre_hook(lambda m, a: (a[0] + spoiling(a[0]),))

    def spoiling(x: Tensor) -> Tensor | float:
        return torch.sqrt(x * 0) if spoiled != 1.0 else 0.0

    outcome: list[object] = []
    for step in range(6):
        bad = step == 3
        spoiled = 2.0 if bad else 1.0
        model.stateful.spoil = bad and not backward
        loss = model(torch.randn(4, WIDTH))["loss"]
        optimizer.zero_grad()
        loss.backward()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        outcome.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
        if not bad:
            optimizer.step()
        elif backward:
            optimizer.step(), model.load_state_dict(before)
        outcome.append(loss.detach().clone())
    if watcher:
        event = watcher.evidence()[1].nonfinite
        # It was in fact run again.
        assert (backward and "no module made" in event.why_unknown) or event.module == "stateful"
        watcher.close()
    outcome += [tensor.clone() for tensor in model.state_dict().values()]
    outcome += [torch.rand(2), random.random(), np.random.rand(), model.stateful.passes]
    outcome += [len(model.stateful.queue), sorted(vars(model.stateful))]
    return outcome


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return (
            a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
            if a.ndim
            else (torch.equal(a.reshape(1).view(torch.uint8), b.reshape(1).view(torch.uint8)))
        )
    if isinstance(a, list) and a and isinstance(a[0], Tensor | None.__class__):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_keeps_from_pass_to_pass_is_not_moved(kind, backward):
    plain, watched = (trained(kind, watching, backward=backward) for watching in (False, True))
    assert all(same(a, b) for a, b in zip(plain, watched, strict=True))


class Holding(nn.Module):
    def __init__(self, what: object) -> None:
        super().__init__()
        self.inner, self.what, self.calls = nn.Linear(WIDTH, WIDTH), what, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if not isinstance(self.what, io.IOBase | np.ndarray):
            next(self.what)
        return (self.inner(x) / 0.0).mean()


class Resizing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(WIDTH, WIDTH), 0
        self.outside = torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.outside.resize_(2 + self.calls)
        return (self.inner(x) / 0.0).mean()


@pytest.mark.parametrize(
    ("made", "calls", "why"),
    [
        (lambda file: Holding(iter(range(9))), 1, "iterator"),
        (lambda file: Holding(number for number in range(9)), 1, "iterator"),
        (lambda file: Holding(file), 1, "open file"),
        (lambda file: Holding(np.array([object()])), 1, "array of objects"),
        (lambda file: Resizing(), 1, "memory of a tensor"),
    ],
)
def test_what_cannot_be_put_back_is_not_moved(made, calls, why, tmp_path):
    with (tmp_path / "log").open("w") as file:
        model = made(file)
        with Watcher(model, every=0, on_error="raise") as watcher:
            model(torch.randn(2, WIDTH))
        event = watcher.evidence()[1].nonfinite
    assert model.calls == calls and event.module is None
    assert "without a trace" in event.why_unknown and why in event.why_unknown


def test_hooks_of_the_user_see_no_pass_that_was_run_again():
    torch.manual_seed(0)
    model = Model("closure")
    seen: list[str] = []
    parameter = model.last.weight
    model.first.register_forward_hook(lambda *_: seen.append("forward"))
    model.first.register_forward_pre_hook(lambda *_: seen.append("before"))
    model.last.register_full_backward_hook(lambda *_: seen.append("backward"))
    parameter.register_hook(lambda _: seen.append("tensor"))
    parameter.register_post_accumulate_grad_hook(lambda _: seen.append("accumulated"))
    model.last.register_forward_pre_hook(lambda m, a: (a[0] + torch.sqrt(a[0] * 0),))
    flags = [module._is_full_backward_hook for module in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Watcher(model, optimizer, every=1, on_error="raise") as watcher:
        loss = model(torch.randn(4, WIDTH))["loss"]
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        kept = list(seen)
        optimizer.step()
        assert [p.grad for p in model.parameters()] == gradients or all(
            a is b.grad for a, b in zip(gradients, model.parameters(), strict=True)
        )
        assert watcher.evidence()[1].nonfinite.where == "gradient"
    assert seen == kept
    assert flags == [module._is_full_backward_hook for module in model.modules()]


def test_an_exception_in_the_pass_that_is_run_again_leaves_no_trace():
    class Once(Stateful):
        def forward(self, x: Tensor) -> Tensor:
            made = super().forward(x)
            if self.passes > 1:
                raise RuntimeError("only once")
            return made

    torch.manual_seed(0)
    model = Model("counter")
    model.stateful = Once("in_place_list")
    model.stateful.spoil = True
    with Watcher(model, every=0, on_error="raise") as watcher:
        x = torch.randn(4, WIDTH)
        state = torch.get_rng_state()
        model(x)
    assert "only once" in watcher.evidence()[1].nonfinite.why_unknown
    assert model.stateful.passes == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
