"""A watched run in a notebook, updated in place every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from vlmdoctor.notebook.run_view import RunState, run_html
from vlmdoctor.notebook.screen import Screen, screen
from vlmdoctor.sandbox import examining
from vlmdoctor.watching.guarded import of_a_signal

EVERY_SECONDS = 3.0
SHARE = 200  # showing may take one part in so many of the run's time


class LiveRun:
    """Shows a run as long as it goes on. A notebook that fails to show it gets no more of it.

    Args:
        place: Where it is shown; None outside of a notebook, where nothing is.
        clock: Gives the time in seconds.
    """

    def __init__(self, place: Screen | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._place = place
        self._clock = clock
        self._next = clock()

    @property
    def due(self) -> bool:
        """Whether it is time to show the run once more."""
        return self._place is not None and self._clock() >= self._next

    def show(self, state: Callable[[], RunState]) -> None:
        """Shows what `state` gives, and puts the next time off by how long that took."""
        if self._place is None:
            return
        began = self._clock()
        try:
            now = state()
            self._place.show(run_html(now), f"vlmdoctor: {now.line()}")
        except Exception as error:
            if of_a_signal(error):
                raise
            self._place = None
        self._next = began + max(EVERY_SECONDS, (self._clock() - began) * SHARE)


def live_run() -> LiveRun:
    """The view of this process's notebook; it shows nothing of the steps that a check takes by itself."""
    return LiveRun(screen() if examining.level() == 0 else None)
