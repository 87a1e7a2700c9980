"""A few steps that are undone again."""

from __future__ import annotations

import copy
import signal
import threading

import pytest
import torch
from torch import nn
from watched import Model, adamw, hooks_on, make_batch, run

from vlmdoctor.errors import Unavailable
from vlmdoctor.probes.training.trial_steps import trial_steps
from vlmdoctor.sandbox.kept_tensors import KeptTensors
from vlmdoctor.subject import Subject
from vlmdoctor.watching.watcher import Watcher


@pytest.mark.parametrize(
    "make",
    [
        adamw,
        lambda model: adamw(model, fused=True),
        lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True),
        lambda model: torch.optim.RMSprop(model.parameters(), 0.01),
    ],
)
@pytest.mark.parametrize("in_memory", [1 << 20, 0], ids=["weights kept in memory", "weights kept in a file"])
def test_a_trial_learns_and_leaves_no_trace(make, in_memory, monkeypatch):
    monkeypatch.setattr("vlmdoctor.sandbox.kept_tensors.IN_MEMORY", in_memory)
    torch.manual_seed(0)
    model = Model().eval()
    optimizer = make(model)
    batch = make_batch()
    model(**batch).loss.backward()
    optimizer.step()
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict(), batch))
    gradients = [(p, p.grad, p.grad.clone()) for p in model.parameters()]
    random, hooks = torch.get_rng_state(), hooks_on(model)

    steps = trial_steps(Subject(model, batch, optimizer=optimizer))

    assert steps.steps[-1].loss < steps.steps[0].loss and len(steps.steps) == 8
    # A bias before batch norm has no effect: its gradient is nothing but rounding.
    assert all(t.moved == t.samples == 8 for t in steps.tracks if t.name != "vision_encoder.0.bias")
    assert steps.accumulates_without_reset is None and steps.planned_steps is None and not steps.finished
    assert torch.equal(random, torch.get_rng_state()) and hooks_on(model) == hooks and not model.training
    assert all(p.grad is grad and torch.equal(grad, value) for p, grad, value in gradients)
    now = (model.state_dict(), optimizer.state_dict(), batch)
    flat, kept_flat = (torch.utils._pytree.tree_leaves(tree) for tree in (now, kept))
    for a, b in zip(flat, kept_flat, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_faults_of_the_wiring_are_copied_along():
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD([model.vision_proj.weight, nn.Parameter(torch.zeros(2))], 0.1)
    steps = trial_steps(Subject(model, make_batch(), optimizer=optimizer))
    tracks = {track.name: track for track in steps.tracks}
    assert tracks["vision_proj.weight"].moved == 8
    assert (tracks["lm_head.weight"].moved, tracks["lm_head.weight"].still) == (0, 8)


def test_a_warm_up_goes_on_in_the_copy_only():
    model = Model()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
    steps = trial_steps(Subject(model, make_batch(), optimizer=optimizer, lr_scheduler=scheduler))
    assert [step.lr for step in steps.steps[:3]] == [0.0, 0.0025, 0.005]
    assert optimizer.param_groups[0]["lr"] == 0.0 and scheduler.last_epoch == 0


def test_a_scheduler_that_looks_at_the_loss_is_given_it():
    model = Model()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    steps = trial_steps(Subject(model, make_batch(), optimizer=optimizer, lr_scheduler=scheduler))
    assert len(steps.steps) == 8 and scheduler.last_epoch == 0


def test_a_loss_of_the_user_s_own():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    batch = (torch.ones(2, 4), torch.ones(2, 1))

    def loss_fn(model, batch):
        return (model(batch[0]) - batch[1]).pow(2).mean()

    losses = [step.loss for step in trial_steps(Subject(model, batch, loss_fn, optimizer=optimizer)).steps]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_what_can_t_be_tried_says_why():
    model = Model()
    optimizer = adamw(model)
    batch = make_batch()
    locked = adamw(model)
    locked.param_groups[0]["lock"] = threading.Lock()
    shared = Model().share_memory()
    for subject, reason in (
        (Subject(model, None, optimizer=optimizer), "no batch"),
        (Subject(model, batch), "no optimizer"),
        (Subject(lambda: model, batch, optimizer=optimizer), "no built model"),
        (Subject(model, batch, optimizer=locked), "can't be copied"),
        (Subject(shared, batch, optimizer=adamw(shared)), "other processes share the weights"),
        (Subject(model, {"input_ids": batch["input_ids"]}, optimizer=optimizer), "pixel_values"),
        (Subject(nn.Linear(2, 2), torch.ones(1, 2), optimizer=optimizer), "no loss"),
    ):
        with pytest.raises(Unavailable, match=reason):
            trial_steps(subject)


def test_a_model_that_no_copy_can_be_made_of_is_tried_too():
    model = Model()
    model.kept = model.vision_proj.weight * 2  # a tensor with a history
    before = model.vision_proj.weight.clone()
    steps = trial_steps(Subject(model, make_batch(), optimizer=adamw(model)))
    assert steps.steps[-1].loss < steps.steps[0].loss
    assert torch.equal(model.vision_proj.weight, before)


def test_a_step_that_raises_leaves_no_trace_either(monkeypatch):
    monkeypatch.setattr("vlmdoctor.sandbox.kept_tensors.IN_MEMORY", 0)
    model = Model()
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("the third is too much")
        return model(**batch).loss

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Unavailable, match="the third is too much"):
        trial_steps(Subject(model, make_batch(), loss_fn, optimizer=adamw(model)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_learn_in_memory_where_no_file_can_be_written(monkeypatch):
    monkeypatch.setattr("vlmdoctor.sandbox.kept_tensors.IN_MEMORY", 0)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    model = Model()
    before = copy.deepcopy(model.state_dict())
    assert len(trial_steps(Subject(model, make_batch(), optimizer=adamw(model))).steps) == 8
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_ctrl_c_waits_until_the_weights_are_back(monkeypatch):
    model = Model()
    before = copy.deepcopy(model.state_dict())
    restore = KeptTensors.restore

    def interrupted(self):
        signal.raise_signal(signal.SIGINT)
        restore(self)

    monkeypatch.setattr(KeptTensors, "restore", interrupted)
    # A shell may have started the tests with Ctrl-C ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trial_steps(Subject(model, make_batch(), optimizer=adamw(model)))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_graph_that_is_still_needed_survives():
    model = Model()
    loss = model(**make_batch()).loss
    trial_steps(Subject(model, make_batch(), optimizer=adamw(model)))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_no_rule_judges_the_steps_of_a_trial(monkeypatch):
    judged = []
    monkeypatch.setattr("vlmdoctor.engine.judge", lambda *_, **__: judged.append(1))
    model = Model()
    with Watcher(model, every=1, on_error="raise", judge=False) as watcher:
        run(model, adamw(model), 3)
    assert watcher.steps == 3 and watcher.findings == ()
    model = Model()
    subject = Subject(model, make_batch(), optimizer=adamw(model))
    assert len(trial_steps(subject).steps) == 8 and not judged
