"""Watching a run of Lightning's Trainer.

from vlmdoctor.integrations.lightning import VLMDoctorCallback

trainer = lightning.Trainer(callbacks=[VLMDoctorCallback()], ...)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback

from vlmdoctor.integrations.watching import Watching
from vlmdoctor.targets.frameworks.lightning_module import only_network

FIRST = 5  # steps that are always reported


class VLMDoctorCallback(Watching, Callback):
    __doc__ = Watching.__doc__

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        inner = only_network(pl_module)
        planned = trainer.estimated_stepping_batches
        self._start(
            pl_module if inner is None else getattr(pl_module, inner),
            list(trainer.optimizers),
            int(planned) if planned != float("inf") else None,
            trainer.global_step,
            getattr(trainer, "log_dir", None) or getattr(trainer, "default_root_dir", None),
        )

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        # Reading the loss waits for the device, so not at every step.
        if (
            self.watcher is not None
            and loss is not None
            and (step <= FIRST or step % (self.every or 100) == 0)
        ):
            # Lightning has divided it by the number of micro-batches.
            self.watcher.log(loss=float(loss.detach()) * trainer.accumulate_grad_batches)
        if self._stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close(exception)
