"""An interrupted check has changed nothing, and what interrupted it passes."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest

import vlmdoctor
from benchmarks.hostile.families_state.tiny import touching
from benchmarks.hostile.fingerprint import changed, fingerprint
from benchmarks.hostile.interruptions import TimeIsUpError, victim
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.sandbox.signals import Interruptions

MOMENTS = 36


class InjectedError(BaseException):
    """What is raised between two instructions."""


@contextmanager
def _raising_at(moment: int, parts: tuple[str, ...]) -> Iterator[list[int]]:
    """Raises at a call or return of the code of some files: at which, counted from 0; yields the count."""
    count = [0]

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "return") and any(part in frame.f_code.co_filename for part in parts):
            count[0] += 1
            if count[0] - 1 == moment:
                raise InjectedError

    sys.setprofile(profile)
    try:
        yield count
    finally:
        sys.setprofile(None)


def _total(parts: tuple[str, ...]) -> int:
    made = victim()
    with _raising_at(-1, parts) as count:
        vlmdoctor.check(made, select=["no-gradient", "loss-not-falling", "batch-form"])
    return count[0]


@pytest.mark.parametrize(
    "parts",
    [("vlmdoctor/unchanged", "vlmdoctor/sandbox/tensors"), ("vlmdoctor/watching", "vlmdoctor/evidence")],
)
@pytest.mark.filterwarnings("ignore")
def test_an_exception_between_any_two_instructions_leaves_no_trace(parts: tuple[str, ...]) -> None:
    vlmdoctor.check(victim(), select=["no-gradient", "loss-not-falling", "batch-form"])  # imports
    total = _total(parts)
    assert total > MOMENTS
    for moment in range(0, total, max(1, total // (MOMENTS // 2))):
        made = victim()
        before = fingerprint(made)
        try:
            with _raising_at(moment, parts):
                vlmdoctor.check(made, select=["no-gradient", "loss-not-falling", "batch-form"])
        except InjectedError:
            pass
        assert changed(before, fingerprint(made)) == [], f"moment {moment} of {total}"


@contextmanager
def _handler(number: int, raised: type[BaseException]) -> Iterator[None]:
    def handle(*_: Any) -> None:
        raise raised

    before = signal.signal(number, handle)
    try:
        yield
    finally:
        assert signal.getsignal(number) is handle
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGALRM, TimeIsUpError), (signal.SIGTERM, SystemExit)],
)
@pytest.mark.parametrize("call", [0, 3])
def test_what_a_handler_raises_in_a_forward_pass_passes(
    number: int, raised: type[BaseException], call: int
) -> None:
    # The bound method of a built-in iterator is not looked into: it counts on through every restoring.
    number_of = itertools.count().__next__

    def touch(model: Any, x: Any) -> None:
        model.calls += 1
        if number_of() == call:
            signal.raise_signal(number)

    made = touching(touch, calls=0)
    before = fingerprint(made)
    with _handler(number, raised), pytest.raises(raised):
        vlmdoctor.check(made)
    assert changed(before, fingerprint(made)) == []


def test_a_signal_that_arrives_while_something_is_restored_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    made = touching(lambda m, x: None, calls=[0])
    before = fingerprint(made)
    with _handler(signal.SIGALRM, TimeIsUpError):
        kept = restoring(made)
        with pytest.raises(TimeIsUpError), kept:
            made.model.calls[0] += 1
            made.model.block.weight.data.zero_()
            kept._undo.append(lambda: signal.raise_signal(signal.SIGALRM))
        assert changed(before, fingerprint(made)) == [] or made.model.calls == [0]
    assert bool(made.model.block.weight.any())


def test_two_quick_signals_raise_once_and_leave_the_handler() -> None:
    with _handler(signal.SIGINT, KeyboardInterrupt), pytest.raises(KeyboardInterrupt), Interruptions():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)


def test_a_swallowed_exception_of_a_handler_is_raised_in_the_end() -> None:
    guarded = (_handler(signal.SIGALRM, TimeIsUpError), pytest.raises(TimeIsUpError), Interruptions())
    with guarded[0], guarded[1], guarded[2], suppress(TimeIsUpError):
        signal.raise_signal(signal.SIGALRM)


def test_a_handler_that_the_user_sets_inside_stays() -> None:
    before = signal.getsignal(signal.SIGALRM)
    try:
        with _handler(signal.SIGTERM, SystemExit), Interruptions():
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGALRM, before)


def test_outside_of_the_main_thread_nothing_is_guarded() -> None:
    seen: list[Any] = []

    def work() -> None:
        handler = signal.getsignal(signal.SIGINT)
        with Interruptions():
            seen.append(signal.getsignal(signal.SIGINT) is handler)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
