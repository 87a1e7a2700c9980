"""Interruptions and signal handlers: the run's own exceptions pass, and no hook is left behind."""

from __future__ import annotations

import gc
import logging
import signal
import sys

import pytest
import torch
from torch import nn
from watched import Model, adamw, hooks_on, make_batch, run

import vlmdoctor.watching as package
from vlmdoctor.watching import guarded
from vlmdoctor.watching.guarded import Undo, of_a_signal
from vlmdoctor.watching.watcher import Watcher

OURS = package.__path__[0]


class TimeIsUp(Exception):
    """What the handler of a cluster or of a test runner raises."""


class Moments:
    """Raises a signal at the given lines, counted over all lines that run in the watcher's own code."""

    def __init__(self, *moments: int, signum: int = signal.SIGUSR1) -> None:
        self.moments, self.signum, self.seen, self.raised = set(moments), signum, 0, 0

    def __enter__(self) -> Moments:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame, event, argument):
        return self._line if frame.f_code.co_filename.startswith(OURS) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.seen += 1
            if self.seen in self.moments:
                self.raised += 1
                signal.raise_signal(self.signum)
        return self._line


@pytest.fixture
def handler():
    """A handler that raises an ordinary exception."""

    def raise_it(signum, frame):
        # A tracing function that raises is switched off by Python; the next moment needs it again.
        raise TimeIsUp("the time is up")

    before = signal.signal(signal.SIGUSR1, raise_it)
    gc.collect()
    gc.disable()  # a finalizer would swallow the exception
    yield
    gc.enable()
    signal.signal(signal.SIGUSR1, before)


def test_an_exception_of_a_handler_is_told_from_any_other(handler):
    def plain(signum, frame):
        raise TimeIsUp

    for call, expected in (
        (lambda: signal.raise_signal(signal.SIGUSR1), True),
        (lambda: plain(1, None), False),
        (lambda: plain(1, "a frame"), False),
        (lambda: 1 / 0, False),
    ):
        with pytest.raises(Exception) as caught:
            call()
        assert of_a_signal(caught.value) is expected

    class Handler:
        def __call__(self, *args: object) -> None:
            raise TimeIsUp

    for one in (Handler(), Handler().__call__, lambda *args: 1 / 0, lambda signum, *, frame=None: 0):
        if one.__class__.__name__ == "function" and one.__code__.co_kwonlyargcount:
            continue
        signal.signal(signal.SIGUSR1, one)
        with pytest.raises((TimeIsUp, ZeroDivisionError)) as caught:
            signal.raise_signal(signal.SIGUSR1)
        assert of_a_signal(caught.value)


def steps_of(moment: int, watched: bool, caplog):
    torch.manual_seed(0)
    model = Model()
    optimizer = adamw(model)
    clean = hooks_on(model)
    model.lm_head.register_forward_hook(lambda m, a, out: out * (torch.inf if len(losses) == 2 else 1.0))
    watcher = Watcher(model, optimizer, every=1, on_error="warn") if watched else None
    losses: list[float] = []
    passed = 0
    with Moments(moment) as moments:
        for _ in range(4):
            batch = make_batch()
            try:
                optimizer.zero_grad()
                loss = model(**batch).loss
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            except TimeIsUp:
                passed += 1
                losses.append(-1.0)
    sys.settrace(None)
    if watcher:
        watcher.close()
    assert hooks_on(model) == clean + 1
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
    return passed, moments.raised, moments.seen


def test_a_handler_s_exception_passes_at_whatever_moment_it_comes(handler, caplog):
    """Through the watcher's hooks too, without a word of the watcher's; the hooks are gone afterwards."""
    _, _, lines = steps_of(0, True, caplog)
    assert lines > 3000
    # More densely at the beginning, where hooks are put on; judging takes the most lines.
    for moment in (5, 101, 333, 1111, 2222, *range(3333, lines, lines // 8)):
        passed, raised, _ = steps_of(moment, True, caplog)
        assert (passed, raised) == (1, 1), moment


PLACES = ("gradients.Gradients.disarm", "hook._drop", "movement.Movement.forget")


@pytest.mark.parametrize("first", PLACES)
@pytest.mark.parametrize("second", PLACES)
@pytest.mark.parametrize("late", [False, True])
def test_two_quick_interruptions_of_the_end_leave_no_hook(first, second, late, monkeypatch):
    model = Model()
    clean = hooks_on(model)
    optimizer = adamw(model)
    interruptions = {}
    for place in (first, second):
        interruptions[place] = interruptions.get(place, 0) + 1

    def interrupted(place, real):
        def call(*arguments):
            if late:
                real(*arguments)
            if interruptions[place]:
                interruptions[place] -= 1
                raise KeyboardInterrupt
            return real(*arguments)

        return call

    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117 (what the block itself raises)
        with Watcher(model, optimizer, every=1, on_error="raise") as watcher:
            run(model, optimizer, 1)
            for place in interruptions:
                name = f"vlmdoctor.watching.{place}"
                module, _, attribute = name.rpartition(".")
                owner = sys.modules.get(module) or getattr(
                    sys.modules[module.rpartition(".")[0]], module.rpartition(".")[2]
                )
                monkeypatch.setattr(owner, attribute, interrupted(place, getattr(owner, attribute)))
    assert hooks_on(model) == clean
    monkeypatch.undo()
    watcher.close()
    assert not hasattr(nn.Module, "__prepare_scriptable__")


def test_undoing_is_finished_before_anything_passes():
    done: list[str] = []
    left = {"first": 1, "second": 2, "third": 0}

    def step(name: str, error: type[BaseException]) -> None:
        if left[name]:
            left[name] -= 1
            raise error(name)
        done.append(name)

    undo = Undo()
    undo.push(lambda: step("first", KeyboardInterrupt))
    undo.push(lambda: step("second", KeyboardInterrupt))
    undo.push(lambda: step("third", ValueError))
    with pytest.raises(KeyboardInterrupt, match="second"):
        undo.finish()
    assert done == ["third", "second", "first"]
    undo.finish()
    assert len(done) == 3
    undo.push(lambda: step("broken", ValueError))
    with pytest.raises(KeyError):
        undo.finish()
    undo.finish()


def test_an_interruption_of_the_beginning_leaves_no_hook(monkeypatch):
    model = Model()
    clean = hooks_on(model)
    for name in ("hook_optimizers", "hook_forward"):
        real = getattr(sys.modules["vlmdoctor.watching.sensor"], name)

        def interrupted(*arguments, real=real):
            real(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(f"vlmdoctor.watching.sensor.{name}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Watcher(model, adamw(model), every=1)
        monkeypatch.undo()
        assert hooks_on(model) == clean
    monkeypatch.setattr("vlmdoctor.watching.journal.Journal.start", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Watcher(model, adamw(model), every=1)
    assert hooks_on(model) == clean
    assert not hasattr(nn.Module, "__prepare_scriptable__")


def test_words_of_an_exception_that_refuses_to_be_printed():
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert "Mute" in guarded.words(Mute()) and "raises" in guarded.words(Mute())
    assert guarded.words(ValueError("so")) == "ValueError: so"
