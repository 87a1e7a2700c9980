"""Naming where a NaN or infinity came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from watched import Model, adamw, make_batch, run

from vlmdoctor.watching.watcher import Watcher


def event_of(model: nn.Module, spoil, *, every: int = 1, good_steps: int = 2):
    """Trains a little, spoils something, and returns what is said about it."""
    torch.manual_seed(0)
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=every, on_error="raise") as watcher:
        run(model, optimizer, good_steps)
        assert watcher.evidence()[1].nonfinite is None
        batch = spoil(model) or make_batch()
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
    event = watcher.evidence()[1].nonfinite
    assert event is not None and event.step == good_steps
    return event


def test_the_batch():
    def spoil(model):
        batch = make_batch()
        batch["pixel_values"][1, 2, 3, 4] = torch.nan
        return batch

    event = event_of(Model(), spoil, every=0)
    assert (event.where, event.inputs_finite, event.inputs) == ("loss", False, ("pixel_values",))
    assert event.module is None


def test_a_weight():
    def spoil(model):
        with torch.no_grad():
            model.layers[1].up.weight[0, 0] = torch.inf

    event = event_of(Model(), spoil, every=0)
    assert (event.where, event.parameters) == ("weight", ("layers.1.up.weight",))


class Overflow(nn.Module):
    """Adds the exponential of something far too large, in its own code and not in a child's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.exp(x * self.factor))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_module_whose_own_code_overflows(compiled):
    def spoil(model):
        model.layers[0].factor = 1e6

    model = Model()
    model.layers[0] = Overflow()
    if compiled:
        torch._dynamo.reset()
        optimizer = adamw(model)
        wrapped = torch.compile(model, backend="eager")
        with Watcher(wrapped, optimizer, every=0, on_error="raise") as watcher:
            spoil(model)
            wrapped(**make_batch()).loss.backward()
        event = watcher.evidence()[1].nonfinite
    else:
        event = event_of(model, spoil, every=0)
    assert (event.where, event.module, event.module_class) == ("activation", "layers.0", "Overflow")
    assert event.inputs_finite and event.largest is not None and 0 < event.largest < 100


def test_every_label_masked():
    def spoil(model):
        batch = make_batch()
        batch["labels"].fill_(-100)
        return batch

    model = Model()
    event = event_of(model, spoil)
    assert (event.where, event.module) == ("loss", "Model.forward")


def test_autocast_weights_are_not_cached_without_history():
    """A replay without gradients must not leave converted weights to the passes that follow."""
    model = Model()
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=0, on_error="raise"), torch.autocast("cpu", torch.bfloat16):
        bad = make_batch()
        bad["pixel_values"].fill_(torch.nan)
        model(**bad)
        model(**make_batch()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class RootOfZero(nn.Module):
    """Finite forwards, not backwards: the derivative of a root at 0 is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.on = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return x + torch.sqrt(x * 0) if self.on else x


def test_a_gradient_that_only_backward_spoils():
    def spoil(model):
        model.layers[1].on = True

    model = Model()
    model.layers[1] = RootOfZero()
    event = event_of(model, spoil)
    assert event.where == "gradient" and event.inputs_finite
    assert event.parameters[0].startswith("layers.1.inner")
    assert event.module in ("layers.1", "layers.1.inner") or event.why_unknown


def test_an_exception_in_the_replay_is_told_as_the_reason(monkeypatch):
    calls = []

    def spoil(model):
        plain = model.lm_head.forward

        def once(x: Tensor) -> Tensor:
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("only once")
            return plain(x) * torch.nan

        model.lm_head.forward = once

    torch.manual_seed(0)
    model = Model()
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=1, on_error="raise") as watcher:
        run(model, optimizer, 1)
        spoil(model)
        model(**make_batch())
    event = watcher.evidence()[1].nonfinite
    assert event.where == "loss" and event.module is None and "only once" in event.why_unknown


def test_a_loss_that_only_the_loop_knows():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Watcher(model, optimizer, on_error="raise") as watcher:
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
        watcher.log(loss=float("nan"))
    event = watcher.evidence()[1].nonfinite
    assert (event.where, event.step) == ("loss", 0) and "logged" in event.why_unknown


def test_a_pass_that_waits_for_other_processes_is_not_repeated(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    model = Model()
    model.shared = nn.SyncBatchNorm(4)
    model.lm_head.register_forward_hook(lambda module, args, output: output * torch.nan)
    with Watcher(model, adamw(model), every=0, on_error="raise") as watcher:
        model(**make_batch())
    event = watcher.evidence()[1].nonfinite
    assert (event.where, event.module) == ("loss", None) and "other processes" in event.why_unknown


def test_the_line_of_the_users_code_that_calls_the_module():
    def spoil(model):
        model.layers[0].factor = 1e6

    model = Model()
    model.layers[0] = Overflow()
    event = event_of(model, spoil, every=0)
    assert event.module == "layers.0"
    assert event.file is not None and event.file.endswith("watched.py")
    line = Path(event.file).read_text(encoding="utf-8").splitlines()[event.line - 1]
    assert "layer(" in line
