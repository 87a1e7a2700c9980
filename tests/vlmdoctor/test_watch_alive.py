"""Watching keeps nothing of the user's alive."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizers
from watched import Model, adamw, hooks_on, make_batch, run

from vlmdoctor.watching.watcher import Watcher


@pytest.fixture(autouse=True)
def no_collector():
    """What dies here dies at once, and not when the garbage collector comes by."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_an_optimizer_dies_with_its_epoch():
    model = Model()
    with Watcher(model, every=1, on_error="raise") as watcher:
        alive = []
        for _ in range(4):
            optimizer = adamw(model)
            run(model, optimizer, 2)
            alive.append(weakref.ref(optimizer))
            del optimizer
            gc.collect()  # torch's own optimizers are cycles
            assert all(one() is None for one in alive)
        parameters, steps = watcher.evidence()
    assert len(steps.steps) == 8
    # What they held is still known.
    assert all(entry.in_optimizer == 1 and entry.lr == 1e-2 for entry in parameters.parameters)


def test_an_optimizer_that_was_given_dies_too():
    model = Model()
    optimizer = adamw(model)
    watcher = Watcher(model, optimizer, every=1, on_error="raise")
    alive = weakref.ref(optimizer)
    run(model, optimizer, 2)
    del optimizer
    gc.collect()
    assert alive() is None
    assert all(entry.in_optimizer == 1 for entry in watcher.evidence()[0].parameters)
    watcher.close()


def test_a_scaler_dies():
    model = Model()
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=1, on_error="raise") as watcher:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for _ in range(2):
            scaler.scale(model(**make_batch()).loss).backward()
            scaler.step(optimizer)
            scaler.update()
        alive = weakref.ref(scaler)
        del scaler
        gc.collect()
        assert alive() is None
        run(model, optimizer, 2)
    assert watcher.steps == 4


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("close", [False, True])
def test_a_model_dies_at_once_although_its_watcher_is_held(every, close):
    model = Model()
    optimizer = adamw(model)
    watcher = Watcher(model, optimizer, every=every, on_error="raise")
    run(model, optimizer, 6)
    if close:
        watcher.close()
    alive = [weakref.ref(model), weakref.ref(model.layers[0]), weakref.ref(model.lm_head.weight)]
    del model, optimizer
    gc.collect() if close else gc.collect(1)
    assert [one() for one in alive] == [None] * 3
    parameters, steps = watcher.evidence()
    assert len(parameters.parameters) > 10 and len(steps.steps) == 6
    assert all(entry.in_optimizer == 1 for entry in parameters.parameters)
    assert not torch_optimizers._global_optimizer_pre_hooks
    watcher.close()


def test_a_watcher_that_was_dropped_goes_with_its_model():
    model = Model()
    optimizer = adamw(model)
    Watcher(model, optimizer, every=1, on_error="raise")
    run(model, optimizer, 2)
    assert torch_optimizers._global_optimizer_pre_hooks
    del model, optimizer
    gc.collect()
    assert not torch_optimizers._global_optimizer_pre_hooks
    assert not torch_optimizers._global_optimizer_post_hooks


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("backward", [False, True])
def test_batches_outputs_and_graphs_die_while_watching_goes_on(every, backward):
    model = Model()
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=every, on_error="raise"):
        for _ in range(3):
            batch = make_batch()
            output = model(**batch)
            if backward:
                output.loss.backward()
            alive = [weakref.ref(batch["pixel_values"]), weakref.ref(output), weakref.ref(output.loss)]
            del batch, output
            assert [one() for one in alive] == [None] * 3
            if backward:
                optimizer.step()


def test_losses_that_are_collected_keep_no_batch():
    model = Model()
    optimizer = adamw(model)
    losses, alive = [], []
    with Watcher(model, optimizer, every=1, on_error="raise"):
        for _ in range(3):
            batch = make_batch()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            losses.append(loss)
            alive.append(weakref.ref(batch["pixel_values"]))
            del batch, loss
            assert alive[-1]() is None


def test_a_layer_that_was_removed_dies():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Watcher(model, optimizer, every=1, on_error="raise") as watcher:
        run(model, optimizer, 3)
        alive = weakref.ref(model.layers[1].up.weight)
        optimizer = torch.optim.SGD([*model.lm_head.parameters()], 0.1)
        model.layers = nn.ModuleList([model.layers[0]])
        gc.collect()
        assert alive() is None
        run(model, optimizer, 3)
    assert watcher.steps == 6
    assert hooks_on(model) == 0
