"""What the watcher measures, against the same computed by hand."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn
from watched import VOCABULARY, Model, adamw, hooks_on, make_batch, run

from vlmdoctor.errors import UserError
from vlmdoctor.evidence.steps import Step
from vlmdoctor.watching import recent_steps as histories
from vlmdoctor.watching.movement import SAMPLE, Movement, strided_sample
from vlmdoctor.watching.recent_steps import RecentSteps
from vlmdoctor.watching.tracks import KEPT, Tracks
from vlmdoctor.watching.watcher import Watcher


def watched(model, optimizer=None, **options) -> Watcher:
    return Watcher(model, optimizer, **{"every": 1, "on_error": "raise", **options})


def track_of(watcher: Watcher, name: str):
    return {track.name: track for track in watcher.evidence()[1].tracks}[name]


def norm(tensors) -> float:
    return math.sqrt(sum(float(t.double().pow(2).sum()) for t in tensors))


def test_norms_before_and_after_clipping_and_updates_equal_those_by_hand():
    torch.manual_seed(0)
    model = Model()
    optimizer = adamw(model)
    with watched(model, optimizer) as watcher:
        for _ in range(3):
            optimizer.zero_grad()
            model(**make_batch()).loss.backward()
            raw = {name: p.grad.clone() for name, p in model.named_parameters()}
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.step()
            after = {name: p.detach() for name, p in model.named_parameters()}
            step = watcher.evidence()[1].steps[-1]
            assert step.grad_norm == pytest.approx(norm(raw.values()), rel=1e-5)
            assert step.grad_norm_after == pytest.approx(0.1, rel=1e-4)
            projector = [name for name in raw if name.startswith("vision_proj")]
            assert step.role_grad_norms["projector"] == pytest.approx(
                norm(raw[n] for n in projector), rel=1e-5
            )
            layer = [raw[n] for n in raw if n.startswith("layers.1.")]
            assert step.layer_grad_norms["layers.1"] == pytest.approx(norm(layer), rel=1e-5)
            moved = norm(after[n] - before[n] for n in projector) / norm(before[n] for n in projector)
            assert step.role_update_ratios["projector"] == pytest.approx(moved, rel=1e-4)
            assert (step.supervised_tokens, step.images, step.lr) == (15, 3, 0.01)
    track = track_of(watcher, "vision_proj.weight")
    assert (track.samples, track.with_gradient, track.moved, track.still) == (3, 3, 3, 0)
    assert track.changed_fraction == 1.0


def test_accumulated_gradients_are_running_sums_and_losses_are_averaged():
    torch.manual_seed(0)
    model = Model()
    optimizer = adamw(model)
    with watched(model, optimizer) as watcher:
        losses = []
        for _ in range(3):
            loss = model(**make_batch()).loss
            losses.append(loss.item())
            (loss / 3).backward()
        expected = norm(p.grad for p in model.parameters())
        optimizer.step()
        step = watcher.evidence()[1].steps[0]
    assert step.grad_norm == pytest.approx(expected, rel=1e-5)
    assert step.loss == pytest.approx(sum(losses) / 3)
    assert (step.supervised_tokens, step.images) == (45, 9)


def test_losses_divided_by_the_whole_batch_are_added():
    model = Model()
    optimizer = adamw(model)
    with watched(model, optimizer) as watcher:
        total = 0.0
        for _ in range(2):
            loss = model(**make_batch(), num_items_in_batch=30).loss
            total += loss.item()
            loss.backward()
        optimizer.step()
    assert watcher.evidence()[1].steps[0].loss == pytest.approx(total)


def test_sampling_takes_the_first_steps_and_then_every_so_many():
    model = Model()
    optimizer = adamw(model)
    with watched(model, optimizer, every=10) as watcher:
        assert watcher.sampled is None
        run(model, optimizer, 22)
        assert watcher.sampled == watcher.evidence()[1].sampled[-1]
    steps = watcher.evidence()[1]
    assert [step.step for step in steps.sampled] == [0, 1, 2, 3, 4, 10, 20]
    assert [step.step for step in steps.steps] == list(range(22))
    assert all(step.loss is not None for step in steps.steps)


def test_absent_stale_and_zeroed_gradients_are_told_apart():
    model = Model()
    model.unused = nn.Linear(2, 2)
    model.lm_head.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watched(model, optimizer) as watcher:
        run(model, optimizer, 2)
        model.unused.weight.grad = torch.ones(2, 2)  # a stale one, from elsewhere
        for _ in range(2):
            optimizer.zero_grad(set_to_none=False)
            (model(**make_batch()).loss * 0).backward()
            optimizer.step()
    unused, frozen = track_of(watcher, "unused.weight"), track_of(watcher, "lm_head.weight")
    assert (unused.samples, unused.with_gradient) == (4, 0)
    assert frozen.samples == 0
    assert track_of(watcher, "layers.0.up.weight").zero_gradient == 2
    assert track_of(watcher, "layers.0.up.weight").moved == 2


def test_tied_and_sparse_parameters():
    torch.manual_seed(0)
    tied = Model(tied=True)
    optimizer = adamw(tied)
    with watched(tied, optimizer) as watcher:
        run(tied, optimizer, 2)
    names = [track.name for track in watcher.evidence()[1].tracks]
    assert "embed_tokens.weight" in names and "lm_head.weight" not in names

    sparse = Model(sparse=True)
    optimizer = torch.optim.SGD(sparse.parameters(), 0.1)
    with watched(sparse, optimizer) as watcher:
        model_batch = make_batch()
        sparse(**model_batch).loss.backward()
        expected = norm([sparse.embed_tokens.weight.grad.to_dense()])
        optimizer.step()
    assert track_of(watcher, "embed_tokens.weight").grad_norm == pytest.approx(expected, rel=1e-5)


def test_parameters_unfrozen_or_added_later_are_followed():
    model = Model()
    model.vision_encoder.requires_grad_(False)
    optimizer = adamw(model)
    with watched(model, optimizer) as watcher:
        run(model, optimizer, 3)
        model.vision_encoder.requires_grad_(True)
        model.extra = nn.Linear(16, 16)
        model.vision_proj.register_forward_hook(lambda m, a, out: model.extra(out))
        optimizer.add_param_group({"params": [*model.vision_encoder.parameters(), *model.extra.parameters()]})
        run(model, optimizer, 6)
    assert track_of(watcher, "vision_encoder.0.weight").samples == 5
    assert track_of(watcher, "extra.weight").with_gradient == 5
    assert track_of(watcher, "layers.0.up.weight").samples == 9


def test_several_optimizers_make_one_step():
    model = Model()
    language = [p for name, p in model.named_parameters() if not name.startswith("vision")]
    vision = [p for name, p in model.named_parameters() if name.startswith("vision")]
    pair = [torch.optim.SGD(language, 0.1), torch.optim.AdamW(vision, 0.01)]
    with watched(model, pair) as watcher:
        for _ in range(4):
            for optimizer in pair:
                optimizer.zero_grad()
            model(**make_batch()).loss.backward()
            for optimizer in pair:
                optimizer.step()
    parameters, steps = watcher.evidence()
    assert [step.step for step in steps.steps] == [0, 1, 2, 3]
    assert track_of(watcher, "vision_proj.weight").moved == track_of(watcher, "lm_head.weight").moved == 4
    assert {p.lr for p in parameters.parameters} == {0.1, 0.01}


def test_an_optimizer_that_was_not_given_is_found_and_a_stranger_is_not():
    model, other = Model(), Model()
    optimizer, stranger = adamw(model), adamw(other)
    with watched(model) as watcher:
        for _ in range(3):
            run(other, stranger, 1)
            run(model, optimizer, 1)
    parameters, steps = watcher.evidence()
    assert len(steps.steps) == 3
    assert all(p.in_optimizer == 1 for p in parameters.parameters)


def test_two_models_watched_at_once():
    models = Model(), Model(layers=3)
    optimizers = [adamw(model) for model in models]
    with watched(models[0], optimizers[0]) as first, watched(models[1], optimizers[1]) as second:
        run(models[0], optimizers[0], 2)
        run(models[1], optimizers[1], 5)
    assert (first.steps, second.steps) == (2, 5)
    assert "layers.2" in second.evidence()[1].steps[-1].layer_grad_norms


@pytest.mark.parametrize(("zero", "expected"), [(True, False), (False, True)])
def test_gradients_that_pile_up(zero, expected):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with watched(model, optimizer) as watcher:
        assert watcher.evidence()[1].accumulates_without_reset is None
        for _ in range(5):
            for _ in range(2):
                model(**make_batch()).loss.backward()
            optimizer.step()
            if zero:
                optimizer.zero_grad(set_to_none=False)
    assert watcher.evidence()[1].accumulates_without_reset is expected


def test_a_closure_runs_backward_inside_the_step():
    torch.manual_seed(0)
    model = Model().eval().train()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    batch = make_batch()

    def closure():
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return loss

    with watched(model, optimizer) as watcher:
        for _ in range(2):
            optimizer.step(closure)
    steps = watcher.evidence()[1].steps
    assert [step.step for step in steps] == [0, 1]
    assert steps[0].grad_norm > 0 and track_of(watcher, "lm_head.weight").moved == 2


def test_what_never_reaches_the_optimizer_stands_still():
    model = Model()
    optimizer = adamw(model)
    del optimizer.param_groups[0]["params"][-1]
    with watched(model, optimizer) as watcher:
        run(model, optimizer, 3)
    head = track_of(watcher, "lm_head.weight")
    assert (head.moved, head.still) == (0, 3)
    assert [p.in_optimizer for p in watcher.evidence()[0].parameters if p.name == "lm_head.weight"] == [0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_norms_are_unscaled_and_skipped_steps_not_judged(fused, given):
    torch.manual_seed(0)
    model = Model()
    optimizer = adamw(model, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watched(model, optimizer, scaler=scaler if given else None) as watcher:
        for step in range(4):
            optimizer.zero_grad()
            loss = model(**make_batch()).loss
            scaler.scale(loss).backward()
            if step == 1:
                model.lm_head.weight.grad[0, 0] = torch.inf
            expected = norm(p.grad for p in model.parameters()) / scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            if step == 0:
                first = watcher.evidence()[1].steps[0]
                assert first.grad_norm == pytest.approx(expected, rel=1e-4)
                assert first.grad_norm_after == pytest.approx(expected, rel=1e-4)
    steps = watcher.evidence()[1]
    assert steps.nonfinite is None
    assert all(math.isfinite(step.grad_norm) for step in steps.sampled)
    assert track_of(watcher, "lm_head.weight").nonfinite_gradient == 0
    assert steps.steps[-1].grad_norm == pytest.approx(expected, rel=1e-4)


def test_half_precision_norms_do_not_overflow():
    layer = nn.Linear(64, 64, dtype=torch.float16)
    optimizer = torch.optim.SGD(layer.parameters(), 1e-8)
    with watched(layer, optimizer) as watcher:
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, 3e4)
        optimizer.step()
    assert watcher.evidence()[1].steps[0].grad_norm == pytest.approx(3e4 * math.sqrt(64 * 65), rel=1e-3)
    assert track_of(watcher, "weight").still == 1  # 3e-4 is rounded away


def test_the_loop_s_own_numbers_win_and_its_counting_is_followed():
    model = Model()
    optimizer = adamw(model)
    with watched(model, optimizer) as watcher:
        run(
            model,
            optimizer,
            3,
            after=lambda step, loss: watcher.log(
                step=step + 500, loss=torch.tensor(7.0 + step), tokens_per_s=9
            ),
        )
    assert [(step.step, step.loss) for step in watcher.evidence()[1].steps] == [(500, 7), (501, 8), (502, 9)]


def test_a_step_is_logged_before_the_optimizer_s_step():
    model = Model()
    optimizer = adamw(model)
    with watched(model, optimizer) as watcher:
        for step in range(3):
            optimizer.zero_grad()
            model(**make_batch()).loss.backward()
            watcher.log(loss=float(step))
            optimizer.step()
    assert [step.loss for step in watcher.evidence()[1].steps] == [0.0, 1.0, 2.0]


def test_a_failure_is_said_once_and_the_training_goes_on(monkeypatch, caplog):
    def broken(self, *_):
        raise ZeroDivisionError("broken reduction")

    monkeypatch.setattr("vlmdoctor.watching.sample.Gathered.read", broken)
    torch.manual_seed(0)
    expected = run((plain := Model()), adamw(plain), 4)
    for on_error, said in (("warn", 1), ("ignore", 0)):
        caplog.clear()
        torch.manual_seed(0)
        model = Model()
        clean = hooks_on(model)
        optimizer = adamw(model)
        with Watcher(model, optimizer, on_error=on_error) as watcher:
            assert run(model, optimizer, 4) == expected
            watcher.report()
        assert hooks_on(model) == clean
        messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert len(messages) == said
        assert all("broken reduction" in message for message in messages)
    model = Model()
    optimizer = adamw(model)
    with pytest.raises(ZeroDivisionError), watched(model, optimizer):
        run(model, optimizer, 4)
    assert hooks_on(model) == clean


def test_interrupts_pass_through():
    model = Model()
    optimizer = adamw(model)
    clean = hooks_on(model)

    def interrupt(finding):
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        watched(model, optimizer, trainable="nowhere", on_finding=interrupt),
    ):
        run(model, optimizer, 3)
    assert hooks_on(model) == clean


def test_a_finding_comes_once_and_may_close_the_watcher():
    model = Model()
    optimizer = adamw(model)
    clean = hooks_on(model)
    found = []

    def stop(finding):
        found.append(finding.rule)
        watcher.close()

    watcher = watched(model, optimizer, trainable="nowhere", on_finding=stop)
    run(model, optimizer, 20)
    watcher.close()
    assert "pattern-matches-nothing" in found and len(found) == len(set(found))
    assert watcher.steps == 1
    assert hooks_on(model) == clean
    assert [finding.rule for finding in watcher.findings] == found


def test_evaluations_are_kept_and_reports_judge_them():
    model = Model()
    optimizer = adamw(model)
    with watched(model, optimizer, total_steps=2) as watcher:
        run(model, optimizer, 2)
        watcher.evaluated({"step": 1, "accuracy": 0.5, "samples": 10, "accuracy/left": 0.4})
    steps = watcher.evidence()[1]
    assert (steps.evaluations[0].accuracy, steps.evaluations[0].samples) == (0.5, 10)
    assert steps.finished and steps.planned_steps == 2
    report = watcher.report()
    assert report.command == "watch" and report.target == "Model" and not report.crashed and report.ran


def test_arguments_are_checked():
    for options in ({"on_error": "explode"}, {"every": -1}, {"every": 2.5}):
        with pytest.raises(UserError):
            Watcher(Model(), **options)
    with pytest.raises(UserError, match=r"torch\.nn\.Module"):
        Watcher("a model")


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(histories, "KEPT", 1000)
    history = RecentSteps()
    for number in range(20_000):
        history.add(Step(step=number, loss=1.0, grad_norm=1.0 if number % 10 == 0 else None))
    numbers = [step.step for step in history.steps]
    assert len(numbers) <= 1000 and numbers == sorted(set(numbers))
    assert numbers[: histories.START] == list(range(histories.START)) and numbers[-1] == 19_999
    assert sum(step.grad_norm is not None for step in history.steps) > 50


def test_medians_of_long_runs_are_near_the_true_ones():
    import numpy as np

    tracks, values = Tracks(["a", "b"]), np.random.default_rng(1).lognormal(size=5000)
    yes, no = np.array([True, True]), np.array([True, False])
    for step, value in enumerate(values):
        tracks.add(step, yes, np.array([value, np.nan]), np.array([value, 0.1]), np.array([1.0, 0.0]), no)
    first, second = tracks.tracks()
    assert first.samples == 5000 and tracks._kept.shape[2] == KEPT
    assert np.quantile(values, 0.35) < first.grad_norm < np.quantile(values, 0.65)
    assert second.grad_norm is None and second.with_gradient == 0 and second.changed_fraction == 0.0


@pytest.mark.parametrize("shape", [(), (7,), (300_000,), (512, 1024), (3, 999_983), (4, 3, 300, 301)])
def test_samples_are_views_spread_over_the_whole_tensor(shape):
    tensor = torch.zeros(shape)
    view = strided_sample(tensor)
    assert 0 < view.numel() <= SAMPLE
    view.fill_(1)
    assert float(tensor.sum()) == view.numel()
    if tensor.ndim == 2:
        assert (tensor.sum(0) > 0).float().mean() > 0.02  # not a few columns only
    if tensor.ndim == 4:
        channels_last = torch.zeros(shape).to(memory_format=torch.channels_last)
        strided_sample(channels_last).fill_(1)
        assert float(channels_last.sum()) == view.numel()


def test_an_optimizer_in_place_of_the_one_given_is_followed():
    torch.manual_seed(0)
    model = Model()
    with watched(model, adamw(model)) as watcher:
        run(model, adamw(model), 3)
    steps = watcher.evidence()[1].steps
    assert [step.step for step in steps] == [0, 1, 2]
    assert steps[0].loss == pytest.approx(math.log(VOCABULARY), abs=1)


@pytest.mark.parametrize(
    "shapes",
    [[(3, 4)], [(3, 4), (5,)], [(300, 300)], [(3, 4), (300, 300), (2, 2), ()]],
    ids=["one", "small", "large", "both"],
)
def test_what_a_step_moves_is_measured_and_left_as_it_is(shapes):
    torch.manual_seed(0)
    tensors = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    if len(tensors) > 2:
        tensors[2].data = tensors[2].data.t()
    movement = Movement(lambda: tensors)
    places = list(range(len(tensors)))
    for _ in range(2):
        with torch.no_grad():
            before = [tensor.clone() for tensor in tensors]
            movement.before(places)
            for tensor in tensors:
                tensor.view(-1)[::2].mul_(1.5) if tensor.is_contiguous() else tensor[0].mul_(1.5)
            after = [tensor.clone() for tensor in tensors]
            moved = movement.after()
        assert all(torch.equal(tensor, now) for tensor, now in zip(tensors, after, strict=True))
        assert sorted(moved.places) == places
        numbers = [torch.cat(values).tolist() for values in (moved.updates, moved.weights, moved.changed)]
        for place, size, update, weight, changed in zip(moved.places, moved.sizes, *numbers, strict=True):
            a, b = (strided_sample(values[place]) for values in (before, after))
            assert size == a.numel() and changed == (a != b).sum()
            assert update == pytest.approx(float((b - a).square().sum()), rel=1e-5)
            assert weight == pytest.approx(float(a.square().sum()), rel=1e-5)
        tensors[0].data = tensors[0].data.clone()  # lies elsewhere from now on
