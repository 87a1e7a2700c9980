"""The place in a notebook where something is shown and then updated; outside of a notebook there is none."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from typing import Any

# Set by Jupyter for its kernels and inherited by the commands of `!` and `%%bash`.
KERNEL = "JPY_PARENT_PID"


class Screen:
    """One output of a cell, updated in place.

    Args:
        shell: IPython's shell.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._cell: object = None
        self._name = ""

    def show(self, html: str, text: str) -> None:
        """Shows this in place of what was shown before; in a later cell, as an output of that one.

        Args:
            html: What a browser shows.
            text: What is shown where there is no browser.
        """
        cell = getattr(self._shell, "execution_count", None)
        if self._name and cell == self._cell:
            self._publish(html, text, update=True)
            return
        self._cell, self._name = cell, f"vlmdoctor-{uuid.uuid4().hex}"
        self._publish(html, text, update=False)

    def clear(self) -> None:
        """Takes away what was shown."""
        if self._name:
            self._publish("", "", update=True)

    def _publish(self, html: str, text: str, *, update: bool) -> None:
        from IPython.display import display, update_display

        bundle: Mapping[str, str] = {"text/html": html, "text/plain": text}
        (update_display if update else display)(bundle, raw=True, display_id=self._name)


def screen() -> Screen | None:
    """The screen of this process's notebook; None where there is no notebook. IPython is never imported."""
    try:
        shell = sys.modules["IPython"].get_ipython()
        if getattr(shell, "kernel", None) is None:
            return None
        # A forked process shares the kernel's sockets and must not write to them.
        owner = getattr(getattr(shell.kernel, "session", None), "pid", None)
    except Exception:
        return None
    return Screen(shell) if owner in (None, os.getpid()) else None


def below_a_kernel() -> bool:
    """Whether this is a command in a cell of a notebook (`!…`, `%%bash`), which can't move a cursor."""
    return bool(os.environ.get(KERNEL))
