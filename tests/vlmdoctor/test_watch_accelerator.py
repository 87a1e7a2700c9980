"""What is done differently where tensors live on an accelerator, exercised on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from watched import Model, adamw, make_batch, run

from vlmdoctor.watching import measure, sampling
from vlmdoctor.watching.watcher import Watcher

READ = "aten._local_scalar_dense.default"


@pytest.fixture
def pretend(monkeypatch):
    """Lets everything take the way of an accelerator."""
    monkeypatch.setattr(measure, "on_host", lambda devices: False)
    monkeypatch.setattr(sampling, "on_host", lambda devices: False)


class Counting(TorchDispatchMode):
    """Lists the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def operators_of(step: int, *, watched: bool) -> list[str]:
    """The operators of one training step, that of a watcher sampling every tenth included."""
    torch.manual_seed(0)
    model = Model()
    optimizer = adamw(model, foreach=False)
    watcher = Watcher(model, optimizer, every=10, on_error="raise") if watched else None
    run(model, optimizer, step)
    with Counting() as counting:
        run(model, optimizer, 1)
    if watcher:
        watcher.close()
    return counting.seen


def test_unsampled_steps_run_nothing_and_sampled_ones_read_twice(pretend):
    assert operators_of(6, watched=True) == operators_of(6, watched=False)
    plain, sampled = operators_of(10, watched=False), operators_of(10, watched=True)
    # Of the loss, before it can spoil the weights, one value; the rest is one vector that `tolist` reads.
    assert sampled.count(READ) == plain.count(READ) + 1
    assert sampled.count("aten.cat.default") == plain.count("aten.cat.default") + 3


def test_the_measurements_are_the_same(monkeypatch):
    def evidence():
        torch.manual_seed(0)
        model = Model()
        optimizer = adamw(model)
        with Watcher(model, optimizer, every=2, on_error="raise") as watcher:
            run(model, optimizer, 8, clip=1.0)
        return watcher.evidence()[1]

    here = evidence()
    monkeypatch.setattr(measure, "on_host", lambda devices: False)
    monkeypatch.setattr(sampling, "on_host", lambda devices: False)
    there = evidence()
    assert [step.loss for step in there.steps].count(None) == 2  # the unsampled ones
    for a, b in zip(here.sampled, there.sampled, strict=True):
        assert (a.step, a.loss, a.supervised_tokens) == (b.step, b.loss, b.supervised_tokens)
        assert a.grad_norm == pytest.approx(b.grad_norm) and a.grad_norm_after == pytest.approx(
            b.grad_norm_after
        )
        assert a.role_update_ratios == pytest.approx(b.role_update_ratios, rel=1e-4)
    for a, b in zip(here.tracks, there.tracks, strict=True):
        assert (a.name, a.samples, a.moved, a.still) == (b.name, b.samples, b.moved, b.still)
        assert a.update_ratio == pytest.approx(b.update_ratio, rel=1e-4)


def test_a_gradient_is_found_bad_after_the_step(pretend):
    torch.manual_seed(0)
    model = Model()
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=1, on_error="raise") as watcher:
        run(model, optimizer, 1)
        optimizer.zero_grad()
        loss = model(**make_batch()).loss
        model.lm_head.weight.register_hook(lambda grad: grad * torch.nan)
        loss.backward()
        optimizer.step()
    event = watcher.evidence()[1].nonfinite
    assert (event.step, event.where, event.parameters) == (1, "gradient", ("lm_head.weight",))
    assert event.module is None and "no longer at hand" in event.why_unknown


def test_scalars_and_vectors_are_read_in_order(monkeypatch):
    values = [torch.tensor(1.0), torch.tensor([2.0, 3.0]), torch.tensor(4), torch.tensor([5.0])]
    assert measure.to_host(values) == [1, 2, 3, 4, 5]
    monkeypatch.setattr(measure, "on_host", lambda devices: False)
    assert measure.to_host(values) == [1, 2, 3, 4, 5]
    data, sizes = torch.rand(9), [3, 1, 5]
    assert torch.allclose(measure.sums_on_host(data, sizes), measure.sums_on_device(data, sizes))
