"""Signals while the user's objects are examined: never in a critical moment, and never lost.

Handlers in Python run between any two instructions, and raise what they like. Three things are seen to:
what a handler raises is remembered, so that a probe that takes it for a failure of its own does not end it;
a signal that arrives while something is kept or restored waits until that is done; so does one that follows
another, which is two quick Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

# The code of which no instruction may be the last: what keeps and what restores.
_HERE = Path(__file__).parent
_CRITICAL = (
    f"{_HERE}{os.sep}",
    *(str(_HERE.parent / name) for name in ("unchanged.py", "kept.py", "kept_file.py")),
)
# A second signal waits for the first one's end no longer than this: code that swallows it may hang.
PATIENCE = 5.0

_active: Interruptions | None = None


def raise_if_interrupted() -> None:
    """Raises once more what a signal's handler has raised, if one has: nothing may go on then."""
    if _active is not None and _active.raised is not None and _on_main_thread():
        raise _active.raised


class Interruptions:
    """While this is entered, the Python handlers of signals are guarded, in the main thread alone."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self._since = 0.0
        self._waiting: list[int] = []
        self._put: dict[int, tuple[Any, Callable[..., Any]]] = {}
        self._open = False

    def __enter__(self) -> Interruptions:
        global _active
        if _on_main_thread() and _active is None:
            self._open = True
            _active = self
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler):
                    guard = self._guard(handler)
                    self._put[number] = (handler, guard)  # before it is changed
                    signal.signal(number, guard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._open:
            return
        self.close()
        waiting, self._waiting = self._waiting, []
        if self.raised is None or error is self.raised:
            for number in waiting if self.raised is None else ():
                signal.raise_signal(number)
            return
        raise self.raised

    def close(self) -> None:
        """Puts the user's handlers back, where none of them has set another; does so any number of times."""
        global _active
        for number, (handler, guard) in self._put.items():
            if signal.getsignal(number) is guard:
                signal.signal(number, handler)
        self._open = False
        if _active is self:
            _active = None

    def deliver(self) -> None:
        """Lets the handlers of what has arrived in a critical moment run now."""
        while self._waiting and self.raised is None:
            number = self._waiting.pop(0)
            if number in self._put:
                self._run(self._put[number][0], number, None)

    def _guard(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        def guard(number: int, frame: FrameType | None) -> Any:
            if not self._open:  # somebody has kept it, and calls it long afterwards
                return handler(number, frame)
            if _is_critical(frame) or (self.raised is not None and time.monotonic() - self._since < PATIENCE):
                self._waiting.append(number)
                return None
            return self._run(handler, number, frame)

        return guard

    def _run(self, handler: Callable[..., Any], number: int, frame: FrameType | None) -> Any:
        try:
            return handler(number, frame)
        except BaseException as error:
            self.raised, self._since = error, time.monotonic()
            raise


def deliver() -> None:
    """At the end of a critical moment: what has arrived in it is handled."""
    if _active is not None and _active._waiting and _on_main_thread():
        _active.deliver()


def _is_critical(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_CRITICAL):
            return True
        frame = frame.f_back
    return False


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
