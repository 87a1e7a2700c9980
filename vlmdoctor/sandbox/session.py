"""One examination of the user's objects, from the first look to the last: nothing of it remains."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from vlmdoctor.sandbox.signals import Interruptions
from vlmdoctor.unchanged import unchanged_subject


class Session:
    """Guards signals and keeps all that a Subject has; entered, it is what can't be kept, and why.

        session = Session(subject)
        try:
            with session as not_kept:
                ...
        finally:
            session.close()

    `close` does once more what leaving has done: an exception may come between any two instructions.
    """

    def __init__(self, subject: Any) -> None:
        self._signals, self._kept = Interruptions(), unchanged_subject(subject)

    def __enter__(self) -> list[dict[str, str]]:
        self._signals.__enter__()
        self._kept.__enter__()
        return [{"at": at, "why": why} for at, why in self._kept.not_kept]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._kept.__exit__(kind, error, trace)
        finally:
            self._signals.__exit__(kind, error, trace)

    def close(self) -> None:
        """Restores everything, and the handlers of signals; does so any number of times."""
        try:
            self._kept.restore()
        finally:
            self._signals.close()
