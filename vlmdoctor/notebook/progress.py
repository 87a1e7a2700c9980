"""The progress of a check in a notebook: one line that is gone afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape

from vlmdoctor.notebook.screen import Screen, screen
from vlmdoctor.plain_text import plain_line

# A check that is over sooner shows nothing.
WAIT_SECONDS = 1.0
EVERY_SECONDS = 0.25


@contextmanager
def progress_line(title: str) -> Iterator[Callable[[str], None] | None]:
    """Gives a function that shows in a line what is being done; None outside of a notebook.

    Args:
        title: What is examined.
    """
    place = screen()
    if place is None:
        yield None
        return
    line = Line(place, title)
    try:
        yield line
    finally:
        line.clear()


class Line:
    """A line that is updated in place. A notebook that fails to show it gets no more of it.

    Args:
        place: Where to show it.
        title: What is examined.
        clock: Gives the time in seconds.
    """

    def __init__(self, place: Screen, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._place: Screen | None = place
        self._title = title
        self._clock = clock
        self._next = clock() + WAIT_SECONDS
        self._shown = False

    def __call__(self, what: str) -> None:
        if self._place is None or self._clock() < self._next:
            return
        self._next = self._clock() + EVERY_SECONDS
        words = plain_line(f"checking {self._title}: {what.replace('_', ' ')} …", 200)
        try:
            self._place.show(f"<span style='opacity:.7'>{escape(words)}</span>", words)
            self._shown = True
        except Exception:
            self._place = None

    def clear(self) -> None:
        """Takes the line away."""
        place, self._place = self._place, None
        if place is not None and self._shown:
            try:
                place.clear()
            except Exception:
                return
