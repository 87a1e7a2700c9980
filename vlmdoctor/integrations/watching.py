"""What the callbacks of all frameworks have in common: a watcher, and findings that are reported once."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.integrations.voice import say
from vlmdoctor.plain_text import first_line
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import card_lines, summary_line, withdrawn_line
from vlmdoctor.watching.journal import rank
from vlmdoctor.watching.watcher import Watcher

FOLDER = "vlmdoctor"


class Watching:
    """Watches the model while it trains, and prints each finding once, when it is found.

    At the end it prints one line: the summary, and where the report is.

    Args:
        out: Folder to record the run in; by default `vlmdoctor` in the trainer's own output folder, if it
            has one. False records nothing.
        every: Sample gradients and updates every so many steps.
        trainable: Patterns of the names of the parameters that are meant to learn.
        stop_on: End the training at a finding of this severity or worse (`error` or `warning`); by default
            it is never ended.

    Attributes:
        watcher: What watches, once training has begun.
        folder: Where the run is recorded; None where it is not.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | bool | None = None,
        *,
        every: int = 10,
        trainable: Iterable[str] | str | None = None,
        stop_on: str | None = None,
    ) -> None:
        if stop_on not in (None, "error", "warning"):
            raise UserError(f"stop_on is '{stop_on}'; it must be 'error', 'warning' or None.")
        if out is True:
            raise UserError("out is True; it must be a folder, None (the trainer's own), or False (none).")
        self.watcher: Watcher | None = None
        self.folder: Path | None = None
        self.every = every
        self._out = out
        self._options: dict[str, Any] = {"every": every, "trainable": trainable}
        self._stop_on = None if stop_on is None else Severity(stop_on)
        self._stop = self._closed = False
        # A trainer that raises says so to no callback; the last line is printed all the same.
        atexit.register(_close_if_alive, weakref.ref(self))

    def report(self, fail_on: str = "error") -> Report:
        """The judgement on what was seen so far."""
        if self.watcher is None:
            raise UserError("there is no report before training has begun.")
        return self.watcher.report(fail_on)

    def _start(
        self, model: Any, optimizer: Any, total_steps: int | None, first_step: int, output_dir: Any = None
    ) -> None:
        self._close()
        self._stop = self._closed = False
        settings = {
            "total_steps": total_steps,
            "resumed": first_step > 0,
            "first_step": first_step,
            "on_finding": self._found,
            "on_withdrawn": _withdrawn,
            **self._options,
        }
        if self._out is None and output_dir:
            try:
                self.folder = Path(output_dir) / FOLDER
                self.watcher = Watcher(model, optimizer, out=self.folder, **settings)
                return
            except UserError as error:
                # Nobody asked for this folder: a run must not end because it can't be written.
                say(f"nothing is recorded: {error}")
        self.folder = None if self._out in (None, False) else Path(self._out)  # type: ignore[arg-type]
        self.watcher = Watcher(model, optimizer, out=self.folder, **settings)

    def _close(self, error: BaseException | str | None = None) -> None:
        if self.watcher is None or self._closed:
            return
        self._closed = True
        self.watcher.close(error)
        try:
            self._conclude(self.watcher.report())
        except Exception as failure:
            say(f"the report could not be made: {first_line(failure)}")

    def _conclude(self, report: Report) -> None:
        """One line with the verdict and the report's place, whatever the verdict is."""
        where = ""
        # Another process may record there, or the disk may be full: then there is no run to report.
        if self.folder is not None and (self.folder / "run.jsonl").is_file() and rank() == 0:
            from vlmdoctor.runs.outputs import publish

            publish(self.folder, report, say)
            page = self.folder / "report.html"
            where = f" · report {page}" if page.is_file() else f" · rows {self.folder / 'run.jsonl'}"
        say(summary_line(report) + where)

    def _found(self, finding: Finding) -> None:
        say("\n".join(card_lines(finding)))
        if self._stop_on is not None and finding.severity.rank >= self._stop_on.rank:
            self._stop = True
            say(f"the training is ended, since stop_on is '{self._stop_on}'")


def _withdrawn(finding: Finding, step: int) -> None:
    say(withdrawn_line(step=step, message=finding.message, rule=finding.rule, code=finding.code))


def _close_if_alive(reference: weakref.ref[Watching]) -> None:
    watching = reference()
    if watching is not None:
        watching._close("the training did not come to its end")
