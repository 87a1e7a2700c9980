"""Watching a run of transformers' Trainer, or of TRL's trainers.

from vlmdoctor.integrations.transformers import VLMDoctorCallback

trainer = Trainer(model, args, callbacks=[VLMDoctorCallback(out="runs/one")], ...)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import TrainerCallback

from vlmdoctor.errors import UserError
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.report import Report
from vlmdoctor.watching.watcher import Watcher

log = logging.getLogger("vlmdoctor")


class VLMDoctorCallback(TrainerCallback):
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
        self._options = {"out": out, "every": every, "trainable": trainable}
        self._stop_on = None if stop_on is None else Severity(stop_on)
        self._stop = False

    def report(self, fail_on: str = "error") -> Report:
        """The judgement on what was seen so far."""
        if self.watcher is None:
            raise UserError("there is no report before training has begun.")
        return self.watcher.report(fail_on)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **others: Any
    ) -> None:
        self._close()
        self._stop = False
        self.watcher = Watcher(
            model,
            optimizer,
            total_steps=state.max_steps,
            resumed=state.global_step > 0,
            first_step=state.global_step,
            on_finding=self._found,
            **self._options,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_training_stop |= self._stop

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **others: Any
    ) -> None:
        known = {"learning_rate": "lr", "epoch": "epoch"}
        told = {name: logs[key] for key, name in known.items() if key in (logs or {})}
        if self.watcher is not None and "lr" in told:
            self.watcher.log(**told)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **others: Any
    ) -> None:
        if self.watcher is not None and "eval_loss" in (metrics or {}):
            self.watcher.evaluated({"loss": metrics["eval_loss"]})

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self.watcher is not None:
            self.watcher.close()

    def _found(self, finding: Finding) -> None:
        level = logging.ERROR if finding.severity is Severity.ERROR else logging.WARNING
        if finding.severity is Severity.INFO:
            level = logging.INFO
        where = f", at {', '.join(finding.at[:3])}" if finding.at else ""
        log.log(level, "%s %s: %s%s", finding.severity, finding.rule, finding.message, where)
        if self._stop_on is not None and finding.severity.rank >= self._stop_on.rank:
            self._stop = True
