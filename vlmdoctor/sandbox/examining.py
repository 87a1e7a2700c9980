"""Whether a check is at work: what it runs is no part of a watched run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_HERE = threading.local()
_all = [0]  # checks at work in any thread


@contextlib.contextmanager
def examining() -> Iterator[None]:
    """Inside, watchers that were there before take no notice of what runs in this thread."""
    before = level()
    _HERE.level = before + 1
    _all[0] += 1
    try:
        yield
    finally:
        _all[0] -= 1
        _HERE.level = before


def level() -> int:
    """How many checks this thread is in; a watcher sees what runs at the level that it was made at."""
    return getattr(_HERE, "level", 0)


def anywhere() -> int:
    """How many checks are at work in all threads."""
    return _all[0]
