"""Watching changes no number of a run, and leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from watched import Model, adamw, hooks_on, make_batch, run

from vlmdoctor.watching.watcher import Watcher

OPTIMIZERS = {
    "adamw": lambda model: adamw(model, foreach=False),
    "foreach": lambda model: adamw(model, foreach=True),
    "fused": lambda model: adamw(model, fused=True),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
}


def trained(watched: bool, *, seed: int, kind: str, every: int, accumulate: int, clip: float | None):
    torch.manual_seed(seed)
    model = Model(tied=bool(seed % 2))
    optimizer = OPTIMIZERS[kind](model)
    watcher = Watcher(model, optimizer, every=every, on_error="raise") if watched else None
    losses = run(model, optimizer, 7, accumulate=accumulate, clip=clip)
    if watcher:
        watcher.report()
        watcher.close()
    state = [tensor.clone() for tensor in model.state_dict().values()]
    gradients = [p.grad.clone() for p in model.parameters()]
    return losses, [*state, *gradients, torch.get_rng_state()]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    every=st.sampled_from([0, 1, 3]),
    accumulate=st.integers(1, 3),
    clip=st.sampled_from([None, 0.01, 1.0]),
)
def test_numbers_are_bit_identical(seed, kind, every, accumulate, clip):
    options = {"seed": seed, "kind": kind, "every": every, "accumulate": accumulate, "clip": clip}
    losses, tensors = trained(False, **options)
    watched_losses, watched_tensors = trained(True, **options)
    assert losses == watched_losses
    assert all(torch.equal(a, b) for a, b in zip(tensors, watched_tensors, strict=True))


def test_a_replay_restores_buffers_and_random_numbers():
    outcomes = []
    for watched in (False, True):
        torch.manual_seed(5)
        model = Model()
        spoil = [1.0]
        model.layers[1].down.register_forward_hook(lambda m, a, out, spoil=spoil: out * spoil[0])
        watcher = Watcher(model, every=0, on_error="raise") if watched else None
        model(**make_batch()).loss.backward()
        spoil[0] = float("inf")
        model(**make_batch()).loss.backward()
        outcomes.append([*(b.clone() for b in model.buffers()), torch.get_rng_state(), torch.rand(3)])
        if watcher:
            event = watcher.evidence()[1].nonfinite
            assert (event.where, event.module, event.module_class) == (
                "activation",
                "layers.1.down",
                "Linear",
            )
            watcher.close()
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.parametrize("every", [0, 1, 10])
def test_all_hooks_are_removed(every):
    model = Model()
    before = hooks_on(model)
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=every, on_error="raise") as watcher:
        assert hooks_on(model) > before
        run(model, optimizer, 3)
    assert hooks_on(model) == before
    watcher.close()
    run(model, optimizer, 2)
    assert watcher.steps == 3


def test_unsampled_steps_have_no_hook_on_any_parameter():
    model = Model()
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=100, on_error="raise"):
        run(model, optimizer, 6)
        assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_copies_and_pickles_of_a_watched_model_are_not_watched():
    model = Model()
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=1, on_error="raise") as watcher:
        average = copy.deepcopy(model)
        file = io.BytesIO()
        pickle.dump(model, file)
        restored = pickle.loads(file.getvalue())
        for other in (average, restored):
            run(other, adamw(other), 2)
        assert watcher.steps == 0
        assert not any(p._post_accumulate_grad_hooks for p in average.parameters())


def test_an_unreferenced_watcher_goes_on_and_dies_with_its_model():
    model = Model()
    alive = weakref.ref(model)
    optimizer = adamw(model)
    seen = []
    Watcher(model, optimizer, every=1, on_error="raise", on_finding=seen.append, trainable=["nothing-at-all"])
    run(model, optimizer, 3)
    assert [finding.rule for finding in seen].count("pattern-matches-nothing") == 1
    del model, optimizer
    gc.collect()
    assert alive() is None


class Counting(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operators, and reads of a value above all."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_unsampled_steps_run_no_operator_but_the_read_of_the_loss():
    counts = {}
    for watched in (False, True):
        torch.manual_seed(0)
        model = Model()
        optimizer = adamw(model, foreach=False)
        watcher = Watcher(model, optimizer, every=1000, on_error="raise") if watched else None
        run(model, optimizer, 6)
        with Counting() as counting:
            run(model, optimizer, 1)
        counts[watched] = counting.seen
        if watcher:
            watcher.close()
    extra = list(counts[True])
    for name in counts[False]:
        extra.remove(name)
    assert sorted(extra) == ["aten._local_scalar_dense.default", "aten.detach.default"]


def test_modules_without_parameters_or_optimizer_are_no_trouble():
    with Watcher(nn.Identity(), on_error="raise") as watcher:
        pass
    parameters, steps = watcher.evidence()
    assert parameters.parameters == () and steps.steps == ()
