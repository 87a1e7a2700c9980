"""The boundary to what is foreign: exceptions of signal handlers, objects that raise, and undoing."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
_TRIES = 8  # how often an undo is begun anew when it is interrupted


def of_a_signal(error: BaseException | None) -> bool:
    """Whether a signal handler raised it, wherever that handler happened to interrupt.

    A handler is called with the very frame that it interrupted, so that its own frame shows it.
    """
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            if _is_handler(trace.tb_frame):
                return True
            trace = trace.tb_next
        error = error.__cause__
    return False


def _is_handler(frame: FrameType) -> bool:
    code = frame.f_code
    count = code.co_argcount + code.co_posonlyargcount + bool(code.co_flags & 0x04)  # *args come last
    if not count or frame.f_back is None:
        return False
    values = frame.f_locals
    for name in code.co_varnames[: count + code.co_kwonlyargcount]:
        value = values.get(name)
        if value is frame.f_back:
            return True
        if type(value) is tuple and any(one is frame.f_back for one in value):
            return True
    return False


def words(error: BaseException) -> str:
    """`TypeError: its text`; an exception that refuses to say anything is named only."""
    try:
        text = str(error)
    except Exception as second:
        if of_a_signal(second):
            raise
        return f"{type(error).__name__}, which raises when it is printed"
    return f"{type(error).__name__}: {text}"


def attempted(function: Callable[..., T], *args: Any, otherwise: Any = None) -> T | Any:
    """What `function` returns; `otherwise` where an object of the user's raises at being looked at."""
    try:
        return function(*args)
    except Exception as error:
        if of_a_signal(error):
            raise
        return otherwise


class Undo:
    """Steps that take back what was changed. Each is pushed before its change, and does no harm twice.

    An interruption waits until all are done: a step that it cuts off is begun anew.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def push(self, step: Callable[[], object]) -> None:
        """Adds a step; the last one pushed is the first one done."""
        self._steps.append(step)

    def finish(self) -> None:
        """Does every step, once.

        Raises:
            BaseException: The first that came meanwhile, when all is done.
        """
        # Each interruption can break one level only, and then the next one goes on.
        try:
            self._run()
        finally:
            try:
                self._run()
            finally:
                self._run()

    def _run(self) -> None:
        first: BaseException | None = None
        tries = 0
        while self._steps:
            try:
                step = self._steps[-1]
                step()
                self._steps.pop()
                tries = 0
            except BaseException as error:
                first = first or error
                tries += 1
                again = not isinstance(error, Exception) or of_a_signal(error)
                if not again or tries >= _TRIES:
                    self._steps.pop()
                    tries = 0
        if first is not None:
            raise first
