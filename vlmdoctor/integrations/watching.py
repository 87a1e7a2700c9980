"""What the callbacks of all frameworks have in common: a watcher, and findings that are reported once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.report import Report
from vlmdoctor.watching.watcher import Watcher

log = logging.getLogger("vlmdoctor")


class Watching:
    """Watches the model while it trains, and logs each finding once, when it is found.

    Args:
        out: Folder to record the run in.
        every: Sample gradients and updates every so many steps.
        trainable: Patterns of the names of the parameters that are meant to learn.
        stop_on: End the training at a finding of this severity or worse (`error` or `warning`); by default
            it is never ended.

    Attributes:
        watcher: What watches, once training has begun.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        every: int = 10,
        trainable: Iterable[str] | str | None = None,
        stop_on: str | None = None,
    ) -> None:
        if stop_on not in (None, "error", "warning"):
            raise UserError(f"stop_on is '{stop_on}'; it must be 'error', 'warning' or None.")
        self.watcher: Watcher | None = None
        self.every = every
        self._options: dict[str, Any] = {"out": out, "every": every, "trainable": trainable}
        self._stop_on = None if stop_on is None else Severity(stop_on)
        self._stop = False

    def report(self, fail_on: str = "error") -> Report:
        """The judgement on what was seen so far."""
        if self.watcher is None:
            raise UserError("there is no report before training has begun.")
        return self.watcher.report(fail_on)

    def _start(self, model: Any, optimizer: Any, total_steps: int | None, first_step: int) -> None:
        self._close()
        self._stop = False
        self.watcher = Watcher(
            model,
            optimizer,
            total_steps=total_steps,
            resumed=first_step > 0,
            first_step=first_step,
            on_finding=self._found,
            **self._options,
        )

    def _close(self, error: BaseException | None = None) -> None:
        if self.watcher is not None:
            self.watcher.close(error)

    def _found(self, finding: Finding) -> None:
        levels = {Severity.ERROR: logging.ERROR, Severity.WARNING: logging.WARNING}
        where = f", at {', '.join(finding.at[:3])}" if finding.at else ""
        level = levels.get(finding.severity, logging.INFO)
        log.log(level, "%s %s: %s%s", finding.severity, finding.rule, finding.message, where)
        if self._stop_on is not None and finding.severity.rank >= self._stop_on.rank:
            self._stop = True
