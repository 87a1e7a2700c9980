"""What can be joined to a training run from outside: the console, TensorBoard, W&B, and any observer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from minivlm.errors import UserError, plain, reason_of
from minivlm.progress import nothing, shown

if TYPE_CHECKING:
    from minivlm.run import Run

Record = Mapping[str, Any]
log = logging.getLogger("minivlm")


class Callback:
    """Override what you need. An exception never ends the run: it is told once, and the callback is dropped.

    Only the main process calls callbacks, all of them between two optimizer steps.
    """

    def on_train_begin(self, run: Run) -> None:
        """Model, optimizer and data are ready, nothing has been computed."""

    def on_log(self, run: Run, record: Record) -> None:
        """A step was logged: step, epoch, loss, lr, grad_norm (before clipping), tokens (seen so far),
        supervised_tokens (of this step), tokens_per_s, memory_mb, mfu (None where unknown), skipped (steps so
        far without a finite gradient), seconds (since the start of the run)."""

    def on_evaluate(self, run: Run, record: Record) -> None:
        """An evaluation: step, accuracy, accuracy_shuffled, the samples and kinds (accuracy_of) that they are
        about, the same with `/<kind>` for each kind, loss, loss_shuffled, loss_blank."""

    def on_evaluating(self, run: Run, done: int, total: int) -> None:
        """An evaluation is under way: how many answers of how many it has looked at."""

    def on_checkpoint(self, run: Run, path: Path) -> None:
        """A checkpoint was written."""

    def on_train_end(self, run: Run, summary: Any) -> None:
        """The run came to its planned end."""

    def on_exception(self, run: Run, error: BaseException) -> None:
        """The run ended before that."""


class Callbacks:
    """Calls all callbacks; one that raises is dropped with a warning."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = list(callbacks)

    def call(self, method: str, *arguments: Any) -> None:
        """Calls that method of every callback."""
        for callback in list(self._callbacks):
            try:
                getattr(callback, method)(*arguments)
            except Exception as error:
                self._callbacks.remove(callback)
                message = (
                    f"{type(callback).__name__}.{method} raised {type(error).__name__}: {reason_of(error)}"
                )
                log.warning("%s; the run goes on without it.", message)


class ConsoleCallback(Callback):
    """The familiar log lines.

    [Train Epoch 1] step: 0, loss: 6.5223, lr: 1.0e-05, grad_norm: 1.234, tokens/s: 12345, mem: 512 MB
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._showing: ExitStack | None = None
        self._progress: Callable[[int, int], None] = nothing

    def _clear(self) -> None:
        if self._showing is not None:
            self._showing.close()
            self._showing = None

    def on_train_begin(self, run: Run) -> None:
        from minivlm.trainable import parts

        config = run.config
        self._say(
            f"{config.stage}: {config.preset} on {config.data}, steps {run.step} to {run.total_steps - 1}, "
            f"{config.batch_size * config.accumulate} samples each, on {run.device}, into {run.out}"
        )
        for part in parts(run.model):
            self._say(f"{part.label:<12} {part.name:<18} {part.total:>12,} parameters")

    def on_log(self, run: Run, record: Record) -> None:
        memory = record["memory_mb"]
        extras = [f"mem: {memory:.0f} MB"] if memory is not None else []
        extras += [f"mfu: {100 * record['mfu']:.1f}%"] if record["mfu"] is not None else []
        extras += [f"skipped: {record['skipped']}"] if record["skipped"] else []
        self._say(
            f"[Train Epoch {record['epoch']}] step: {record['step']}, loss: {record['loss']:.4f}, "
            f"lr: {record['lr']:.1e}, grad_norm: {record['grad_norm']:.3f}, "
            f"tokens/s: {record['tokens_per_s']:.0f}{''.join(', ' + extra for extra in extras)}"
        )

    def on_evaluate(self, run: Run, record: Record) -> None:
        self._say(
            f"[Evaluation] step: {record['step']}, accuracy: {100 * record['accuracy']:.1f}%, "
            f"accuracy (shuffled images): {100 * record['accuracy_shuffled']:.1f}%, "
            f"loss: {record['loss']:.4f} "
            f"(shuffled {record['loss_shuffled']:.4f}, blank {record['loss_blank']:.4f})"
        )

    def on_evaluating(self, run: Run, done: int, total: int) -> None:
        if self._showing is None:
            self._showing = ExitStack()
            self._progress = self._showing.enter_context(shown())
        self._progress(done, total)
        if done >= total:
            self._clear()

    def on_exception(self, run: Run, error: BaseException) -> None:
        self._clear()

    def on_checkpoint(self, run: Run, path: Path) -> None:
        self._say(f"[Checkpoint] {path}")

    def on_train_end(self, run: Run, summary: Any) -> None:
        self._say(f"done: {summary.steps} steps, {summary.seconds:.0f} s; see {run.out / 'summary.json'}")

    def _say(self, line: str) -> None:
        print(plain(line), file=self._stream or sys.stdout, flush=True)


class TensorBoardCallback(Callback):
    """Writes every number to event files in the run folder.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("--tensorboard needs: pip install 'vlmdoctor[tensorboard]'") from error
        self._writer_class = SummaryWriter
        self._writer: Any = None

    def on_train_begin(self, run: Run) -> None:
        self._writer = self._writer_class(str(run.out / "tensorboard"), purge_step=run.step)

    def on_log(self, run: Run, record: Record) -> None:
        self._write("train", record)

    def on_evaluate(self, run: Run, record: Record) -> None:
        self._write("evaluate", record)

    def on_train_end(self, run: Run, summary: Any) -> None:
        self._writer.close()

    def on_exception(self, run: Run, error: BaseException) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, section: str, record: Record) -> None:
        for name, value in numbers(record).items():
            self._writer.add_scalar(f"{section}/{name}", value, record["step"])


class WandbCallback(Callback):
    """Logs every number to the active W&B run, or to a new one.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("--wandb needs: pip install 'vlmdoctor[wandb]'") from error
        self._wandb = wandb
        self._started = False

    def on_train_begin(self, run: Run) -> None:
        if self._wandb.run is None:
            self._wandb.init(project="minivlm", name=run.out.name, config=vars(run.config), dir=str(run.out))
            self._started = True

    def on_log(self, run: Run, record: Record) -> None:
        self._wandb.log(
            {f"train/{name}": value for name, value in numbers(record).items()}, step=record["step"]
        )

    def on_evaluate(self, run: Run, record: Record) -> None:
        self._wandb.log(
            {f"evaluate/{name}": value for name, value in numbers(record).items()}, step=record["step"]
        )

    def on_train_end(self, run: Run, summary: Any) -> None:
        if self._started:
            self._wandb.finish()

    def on_exception(self, run: Run, error: BaseException) -> None:
        if self._started:
            self._wandb.finish(exit_code=1)


def numbers(record: Record) -> dict[str, float]:
    """The numbers of a record but for the step."""
    return {
        name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"
    }
