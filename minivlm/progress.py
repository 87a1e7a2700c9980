"""How far an evaluation has come: a bar in a terminal, a line every half a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Progress = Callable[[int, int], None]
EVERY = 30.0  # seconds between lines where no bar can be drawn
REDRAW = 0.2  # seconds
_CELLS = 24


def nothing(done: int, total: int) -> None:
    """Shows nothing."""


class Paced:
    """Hands on what has come at least `every` seconds after the last time, or after it was made."""

    def __init__(self, say: Progress, every: float = EVERY) -> None:
        self._say = say
        self._every = every
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._say(done, total)


@contextmanager
def shown(stream: TextIO | None = None, every: float | None = None) -> Iterator[Progress]:
    """Shows what it is called with on standard error; a bar is taken away at the end."""
    stream = stream or sys.stderr
    bar = stream.isatty()

    def draw(done: int, total: int) -> None:
        text = line(done, total)
        if bar:
            full = _CELLS * done // max(1, total)
            text = f"\r\033[K[{'#' * full}{'.' * (_CELLS - full)}] {text}"
        print(text, file=stream, end="" if bar else "\n", flush=True)

    try:
        yield Paced(draw, every if every is not None else REDRAW if bar else EVERY)
    finally:
        if bar:
            print("\r\033[K", file=stream, end="", flush=True)


def line(done: int, total: int) -> str:
    """`evaluating: 300 of 900 answers`."""
    return f"evaluating: {done:,} of {total:,} answers"
