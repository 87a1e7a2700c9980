"""A watched run equals an unwatched one bit for bit in whatever situation it gets into."""

from __future__ import annotations

import copy
import logging
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from watched import WIDTH, Layer, Model, adamw, hooks_on, make_batch, run

from vlmdoctor.watching.watcher import Watcher


class Strange:
    """Raises at whatever it is asked."""

    def __init__(self, loss: Tensor) -> None:
        self.__dict__["given"] = loss

    def __getattr__(self, name: str) -> object:
        raise ZeroDivisionError(name)

    def refuse(self, *_: object) -> object:
        raise ZeroDivisionError

    __bool__ = __len__ = __eq__ = __iter__ = __getitem__ = __contains__ = refuse
    __hash__ = None


class StrangeList(list):
    def __len__(self) -> int:
        raise ZeroDivisionError


class StrangeOutput(nn.Module):
    def __init__(self, made: Model) -> None:
        super().__init__()
        self.inner = made

    def forward(self, images: object = None, **batch: Tensor) -> Strange:
        return Strange(self.inner(**batch).loss)


def plain(model, optimizer, watch):
    with watch(model, optimizer):
        return run(model, optimizer, 5)


def evaluated_in_between(model, optimizer, watch):
    losses = []
    with watch(model, optimizer):
        for step in range(4):
            losses += run(model, optimizer, 1)
            with torch.no_grad():
                losses.append(float(model(**make_batch()).loss))  # in training mode
            with torch.inference_mode():
                losses.append(float(model(**make_batch()).loss))
            model.eval()
            losses.append(float(model(**make_batch()).loss.detach()))
            model.train(step < 3)
    return losses


def two_watchers(model, optimizer, watch):
    with watch(model, optimizer):
        losses = run(model, optimizer, 2)
        with watch(model, optimizer), watch(model.layers[0], optimizer):
            losses += run(model, optimizer, 3)
        return losses + run(model, optimizer, 2)


def closed_crosswise(model, optimizer, watch):
    first, second = watch(model, optimizer), watch(model, optimizer)
    with first:
        losses = run(model, optimizer, 2)
        second.__enter__()
        losses += run(model, optimizer, 2)
    losses += run(model, optimizer, 2)
    second.__exit__(None, None, None)
    return losses + run(model, optimizer, 1)


def threads(model, optimizer, watch):
    other = copy.deepcopy(model)
    losses = []

    def train():
        # Numbers of its own: the global generator is shared by all threads.
        own = torch.optim.SGD(other.parameters(), 0.1)
        other.eval()
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            own.zero_grad()
            other(**make_batch(generator)).loss.backward()
            own.step()

    with watch(model, optimizer), watch(other):
        thread = threading.Thread(target=train)
        thread.start()
        losses += run(model, optimizer, 4)
        thread.join()
    return losses + [p.detach().clone() for p in other.parameters()]


def checkpointed(model, optimizer, watch, reentrant=False):
    losses = []
    with watch(model, optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            batch = make_batch()
            batch["pixel_values"].requires_grad_()
            given = batch.pop("pixel_values")
            loss = checkpoint(
                lambda x, b=batch: model(pixel_values=x, **b).loss, given, use_reentrant=reentrant
            )
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def closures(model, optimizer, watch):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=3)
    losses = []
    with watch(model, optimizer):
        for _ in range(3):
            batch = make_batch()

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = model(**batch).loss
                loss.backward()
                losses.append(float(loss.detach()))
                return loss

            optimizer.step(closure)
    return losses


def scaled(model, optimizer, watch):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    losses = []
    with watch(model, optimizer):
        for step in range(6):
            optimizer.zero_grad()
            loss = model(**make_batch()).loss * (torch.inf if step == 3 else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            losses += [float(loss.detach()), scaler.get_scale()]
    return losses


def averaged(model, optimizer, watch):
    losses = []
    with watch(model, optimizer):
        average = torch.optim.swa_utils.AveragedModel(model)
        for _ in range(4):
            losses += run(model, optimizer, 1)
            average.update_parameters(model)
            losses.append(float(average(**make_batch()).loss.detach()))
    return losses + list(average.module.state_dict().values())


def several(model, optimizer, watch):
    halves = [adamw(model.layers), torch.optim.SGD(model.lm_head.parameters(), 0.1)]
    losses = []
    with watch(model, halves):
        for step in range(5):
            for half in halves:
                half.zero_grad()
            loss = model(**make_batch()).loss
            loss.backward()
            halves[0].step()
            if step % 2:
                halves[1].step()
            losses.append(float(loss.detach()))
    return losses


def layers_come_and_go(model, optimizer, watch):
    with watch(model, optimizer):
        losses = run(model, optimizer, 2)
        model.layers.append(Layer())
        optimizer.add_param_group({"params": list(model.layers[-1].parameters()), "lr": 1e-3})
        losses += run(model, optimizer, 2)
        del model.layers[0]
        losses += run(model, optimizer, 2)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 2)
        losses += run(model, optimizer, 2)
        optimizer = adamw(model)
        return losses + run(model, optimizer, 2)


def converted(model, optimizer, watch):
    with watch(model, optimizer):
        losses = run(model, optimizer, 2)
        model.double(), [group.update(foreach=False) for group in optimizer.param_groups]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            batch = make_batch()
            batch["pixel_values"] = batch["pixel_values"].double()
            model(**batch).loss.backward()
            optimizer.step()
        model.float()
        return losses + run(model, torch.optim.SGD(model.parameters(), 0.1), 3)


def swapped(model, optimizer, watch):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with watch(model, optimizer):
            losses = run(model, optimizer, 2)
            optimizer.zero_grad()
            model.double()
            model.float()
            return losses + run(model, optimizer, 3)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def lazy(model, optimizer, watch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.layers.append(nn.Sequential(nn.LazyLinear(WIDTH), nn.LazyLinear(WIDTH)))
    with watch(model):
        model(**make_batch())
        return run(model, adamw(model), 3)


def strange_objects(model, optimizer, watch):
    strange = StrangeOutput(model)
    losses = []
    with watch(strange, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            output = strange(images=StrangeList([1]), **make_batch())
            loss = output.__dict__["given"]
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def exceptions(model, optimizer, watch):
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    losses = []
    try:
        with watch(model, optimizer):
            losses += run(model, optimizer, 2)
            raise Mute
    except Mute:
        return losses + run(model, optimizer, 2)


def without_steps(model, optimizer, watch):
    losses = []
    with watch(model, optimizer):
        for _ in range(3):
            losses.append(float(model(**make_batch()).loss.detach()))
        (a, b) = (model(**make_batch()).loss for _ in range(2))
        (a + b).backward(retain_graph=True)
        torch.autograd.grad(a, list(model.lm_head.parameters()), retain_graph=True)
        (a * b).backward()
        optimizer.step()
    return losses


SITUATIONS = {
    situation.__name__: situation
    for situation in (
        *(plain, evaluated_in_between, two_watchers, closed_crosswise, threads, checkpointed, closures),
        *(scaled, averaged, several, layers_come_and_go, converted, swapped, lazy, strange_objects),
        *(exceptions, without_steps),
    )
}
SITUATIONS["reentrant"] = lambda *given: checkpointed(*given, reentrant=True)


class Unwatched:
    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Unwatched:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def attributes(model: nn.Module) -> list[object]:
    """What a user can see of each module, hooks included; tensors are compared elsewhere."""
    found: list[object] = []
    for name, module in model.named_modules():
        own = vars(module)
        hooks = {key: len(value) for key, value in own.items() if key.endswith("_hooks")}
        found.append((name, sorted(own), hooks, module.training, module._is_full_backward_hook))
    return found


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("name", SITUATIONS)
def test_a_watched_run_is_the_unwatched_one(name, every, caplog):
    outcomes = []
    for watch in (Unwatched, lambda *given: Watcher(*given, every=every, on_error="raise")):
        torch.manual_seed(0)
        model = Model()
        made = SITUATIONS[name](model, adamw(model), watch)
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
        tensors += [torch.get_rng_state(), *(one for one in made if isinstance(one, Tensor))]
        numbers = [one for one in made if not isinstance(one, Tensor)]
        outcomes.append((numbers, [t.clone() for t in tensors], attributes(model), hooks_on(model)))
    (numbers, tensors, seen, hooks), (others, watched, seen_watched, hooks_watched) = outcomes
    assert repr(numbers) == repr(others)
    assert len(tensors) == len(watched)
    assert all(torch.equal(a, b) or (a != a).equal(b != b) for a, b in zip(tensors, watched, strict=True))
    assert seen == seen_watched and hooks == hooks_watched == 0
    assert not [record for record in caplog.records if record.name == "vlmdoctor"]


def test_a_failing_watcher_speaks_once_and_then_steps_aside(caplog, monkeypatch):
    model = Model()
    optimizer = adamw(model)

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def broken(*_: object) -> None:
        raise Mute

    with Watcher(model, optimizer, every=1) as watcher:
        run(model, optimizer, 1)
        monkeypatch.setattr("vlmdoctor.watching.journal.Journal.tell", broken)
        monkeypatch.setattr("vlmdoctor.watching.journal.Journal.row", broken)
        for step in range(3):
            watcher.log(loss=float(step))
            watcher.evaluated({"loss": 1.0})
            run(model, optimizer, 1)
        assert hooks_on(model) == 0
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1 and "Mute" in said[0].getMessage()
