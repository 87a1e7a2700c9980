"""Watching a run of transformers' Trainer, or of TRL's trainers.

from vlmdoctor.integrations.transformers import VLMDoctorCallback

trainer = Trainer(model, args, callbacks=[VLMDoctorCallback()], ...)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from vlmdoctor.integrations.watching import Watching


class VLMDoctorCallback(Watching, TrainerCallback):
    __doc__ = Watching.__doc__

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **others: Any
    ) -> None:
        self._start(model, optimizer, state.max_steps, state.global_step, args.output_dir)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_training_stop |= self._stop

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **others: Any
    ) -> None:
        # Not the loss: the Trainer's is the mean since it last logged, and 0.0 where no label is left.
        known = {"learning_rate": "lr", "epoch": "epoch"}
        logs = logs or {}
        told = {name: logs[key] for key, name in known.items() if key in logs}
        if self.watcher is not None and "lr" in told:
            self.watcher.log(**told)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **others: Any
    ) -> None:
        if self.watcher is not None and metrics is not None and "eval_loss" in metrics:
            self.watcher.evaluated({"loss": metrics["eval_loss"]})

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._close()
