"""Ctrl-C between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """The run was stopped by a signal, after its checkpoint was written, or at once by a second signal.

    No KeyboardInterrupt, which command-line frameworks catch and print as "Aborted!". The message is one
    sentence for the user; `exit_status` is what a shell expects: 130 after Ctrl-C.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


class StopNow(KeyboardInterrupt):
    """A signal that is obeyed at once; it passes everywhere that Ctrl-C does."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.exit_status = 128 + number


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM does inside what Ctrl-C does: what is under way is cleaned up, and words are found for it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StopNow(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopSignals:
    """Remembers SIGINT and SIGTERM inside a `with` block; a second one interrupts at once.

    Attributes:
        received: The first signal's number, 0 so far.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python allows signal handlers in the main thread only; elsewhere nothing changes.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def at_once(self, what: str) -> Interrupted:
        """What a run ends with that was interrupted in the middle: `what` says how far it came."""
        return Interrupted(what, self.received or signal.SIGINT)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise StopNow(number)
        self.received = number
