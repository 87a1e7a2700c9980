"""`vlmdoctor.watch`: attach to a model and its optimizer in anybody's training loop.

    with vlmdoctor.watch(model, optimizer, out="runs/one") as watcher:
        for batch in loader:
            loss = model(**batch).loss
            ...
            optimizer.step()
    print(watcher.report())

The numbers of the run are never changed, and the run is never ended by a failure of the watcher's own.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from vlmdoctor.errors import UserError
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Evaluation, NonFinite, Step, Steps, Withdrawn
from vlmdoctor.finding import Finding
from vlmdoctor.knowledge.named_parts import naming
from vlmdoctor.notebook.live import live_run
from vlmdoctor.report import Report
from vlmdoctor.runs import schema
from vlmdoctor.runs.conclusion import judge_run
from vlmdoctor.statements import statements
from vlmdoctor.subject import Subject, optimizers
from vlmdoctor.watching.arguments import refuse_exchanged
from vlmdoctor.watching.evidence import parameters_of, rules_on_steps
from vlmdoctor.watching.guarded import of_a_signal, words
from vlmdoctor.watching.journal import Journal, plain_values
from vlmdoctor.watching.judging import Judging
from vlmdoctor.watching.sensor import Listener, Sensor
from vlmdoctor.watching.shown import Shown

log = logging.getLogger("vlmdoctor")


class Watcher(Shown):
    """Watches one model until it is closed; also a context manager.

    The loss is that in the output of the model's forward pass in training mode (the mean of accumulated
    micro-batches), or what `log` is given. On an accelerator it is read on sampled steps only.
    In a notebook the cell that trains shows the run, updated in place.

    Not covered: optimizers that are not torch's or that step inside backward; norms of sharded parameters
    (FSDP2) are those of this process's part.

    Args:
        model: The model: plain, compiled, wrapped in DDP, with adapters.
        optimizer: The optimizer or several. Where none is given, those that step on the model's
            parameters are found when they do.
        every: Sample gradients and updates every so many steps (and the first five); 0 for never.
        out: Folder to record the run in; in a distributed run only rank 0 records.
        trainable: Patterns of the names of the parameters that are meant to learn.
        scaler: The `GradScaler`; found by itself once it calls the optimizer.
        on_error: What to do when the watcher itself fails: `warn` says so once through the `vlmdoctor`
            logger and stops watching, `ignore` just stops, `raise` raises.
        on_finding: Called once with each new finding.
        on_withdrawn: Called with a finding that no longer holds, and with the step at which that was seen.
        total_steps: How many optimizer steps are planned.
        target: What is trained, in the user's words; by default the model's class.
        command: The command that runs it, for the record.
        config: Its settings as plain values, for the record.
        resumed: Whether the run continues another or starts from trained weights.
        first_step: Number of the first step; 0 unless the run is resumed.
        required_accuracy: The share of right answers, 0 to 1, that is asked for.
        roles, image_token_id, labels_name: As in `Subject`; nothing is measured while a run is watched.
        judge: Whether rules judge the run while it goes on, and at its end; `report` judges in any case.

    Attributes:
        sampled: The latest step at which gradients were measured; None before the first.

    Raises:
        UserError: An argument is no use, or the folder can't be written.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        *,
        every: int = 10,
        out: str | os.PathLike[str] | None = None,
        trainable: Iterable[str] | str | None = None,
        scaler: Any = None,
        on_error: str = "warn",
        on_finding: Callable[[Finding], None] | None = None,
        on_withdrawn: Callable[[Finding, int], None] | None = None,
        total_steps: int | None = None,
        target: str | None = None,
        command: str | None = None,
        config: Mapping[str, Any] | None = None,
        resumed: bool | None = None,
        first_step: int = 0,
        required_accuracy: float | None = None,
        judge: bool = True,
        roles: Mapping[str, Any] | None = None,
        image_token_id: int | None = None,
        labels_name: str | None = None,
    ) -> None:
        refuse_exchanged(model, optimizer)
        if on_error not in ("warn", "raise", "ignore"):
            raise UserError(f"on_error is '{on_error}'; it must be 'warn', 'raise' or 'ignore'.")
        if not isinstance(every, int) or every < 0:
            raise UserError(f"every is {every}; it must be a number of steps, or 0 to sample none.")
        said = Subject(model, roles=roles, image_token_id=image_token_id, labels_name=labels_name)
        self._said = statements(said)
        self.target = target or type(model).__name__
        self._model = weakref.ref(model)  # a report keeps no model
        self._trainable = [trainable] if isinstance(trainable, str) else trainable and list(trainable)
        self._on_error = on_error
        self._on_finding = on_finding
        self._on_withdrawn = on_withdrawn
        self._withdrawn: list[Withdrawn] = []
        self._total_steps = total_steps
        self._resumed = resumed
        self._required_accuracy = required_accuracy
        self._aligned = first_step != 0
        self._evaluations: list[Evaluation] = []
        self._nonfinite: NonFinite | None = None
        self._judging = Judging(on=judge)
        self._known_parameters: Parameters | None = None
        self.sampled: Step | None = None
        self._finished = self._closed = self._ended = self._failed = False
        self._started = time.perf_counter()
        self._first_step = first_step
        self._phase, self._error = "running", ""
        self._view = live_run()
        self._journal = Journal(out, resumed=bool(resumed) and first_step > 0)
        with naming(self._said):
            self._sensor = Sensor(
                model,
                optimizers(optimizer),
                every=every,
                scaler=scaler,
                first_step=first_step,
                listener=Listener(self._on_step, self._on_nonfinite, self._on_failure),
            )
        try:
            self._journal.start(
                {
                    "target": self.target,
                    "command": command,
                    "config": dict(config or {}),
                    "total_steps": total_steps,
                    "resumed": resumed,
                    "required_accuracy": required_accuracy,
                },
                self._parameters(),
            )
        except BaseException:
            self._sensor.close()
            raise

    def log(self, step: int | None = None, **metrics: Any) -> None:
        """Tells what the loop knows of a step: `loss`, `lr`, `epoch`, `tokens_per_s`, and whatever else.

        Args:
            step: Its number; by default the step in progress, or right after `optimizer.step()` the one
                just made. A loop that counts from elsewhere than 0 is followed.
            metrics: Numbers or texts. They win over what the hooks saw, except that the measured norms stay.
        """
        self._safely(self._log, step, metrics)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Tells the result of an evaluation; fields as in `Evaluation`, `step` among them, and any others."""
        self._safely(self._evaluated, record)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found so far, in the order found."""
        return tuple(self._judging.findings.values())

    @property
    def steps(self) -> int:
        """Number of the step in progress."""
        return self._sensor.step

    def evidence(self) -> tuple[Parameters, Steps]:
        """What was seen so far."""
        return self._parameters(), Steps(
            steps=self._journal.steps,
            tracks=self._sensor.sampling.tracks.tracks(),
            evaluations=tuple(self._evaluations),
            nonfinite=self._nonfinite,
            planned_steps=self._total_steps,
            finished=self._finished,
            resumed=self._resumed,
            accumulates_without_reset=self._sensor.sampling.accumulates_without_reset,
            required_accuracy=self._required_accuracy,
            withdrawn=tuple(self._withdrawn),
            last_made=self._sensor.step - 1 if self._journal.last is not None else None,
        )

    def report(self, fail_on: str = "error") -> Report:
        """The judgement of every rule that parameters and steps are enough for."""
        with naming(self._said):
            return judge_run(
                *self.evidence(), rules_on_steps(), command="watch", target=self.target, fail_on=fail_on
            )

    def close(self, error: BaseException | str | None = None) -> None:
        """Ends the watching: removes all hooks, completes the run folder. More calls do no harm.

        Args:
            error: What ended the run before its time, if anything did.
        """
        try:
            if not self._closed:
                self._sensor.finish()
        finally:
            self._sensor.close()
        if self._closed:
            return
        self._closed = True
        enough = self._total_steps is None or self._sensor.step >= self._total_steps
        self._finished = error is None and enough
        self._phase = "finished" if self._finished and self._total_steps else "ended"
        if error is not None:
            self._phase = "stopped"
        self._seconds = time.perf_counter() - self._started
        self._safely(self._end, error)
        if self._sensor.step > self._first_step:
            self._view.show(self._run_state)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.close(error)

    # What the sensor tells

    def _on_step(self, step: Step, sampled: bool) -> None:
        self._journal.made(step, sampled)
        if sampled:
            self.sampled = step
        if self._judging.due(sampled=sampled):
            self._judging.judge(self._judge)
        if self._view.due:
            self._view.show(self._run_state)

    def _on_nonfinite(self, event: NonFinite) -> None:
        self._nonfinite = event
        self._journal.row("nonfinite", vars(event))
        self._judging.soon()

    def _on_failure(self, error: Exception) -> None:
        if self._on_error == "raise":
            raise error
        if self._on_error == "warn" and not self._failed:
            self._failed = True
            log.warning(
                "watching stopped after an error of its own (%s); the training goes on unwatched.",
                words(error),
                exc_info=error if log.isEnabledFor(logging.DEBUG) else None,
            )
        self._failed = True

    def _safely(self, function: Callable[..., None], *args: Any) -> None:
        if self._failed:
            return
        try:
            function(*args)
        except Exception as error:
            self._sensor.close()
            if of_a_signal(error):
                raise
            self._on_failure(error)

    # What the loop tells

    def _log(self, step: int | None, metrics: dict[str, Any]) -> None:
        sensor = self._sensor
        # Between the forward pass and the optimizer's step it is the step in progress that is told of.
        present = sensor.step if sensor.passes.count or self._journal.last is None else sensor.step - 1
        if step is None:
            step = present
        elif step > present or not self._aligned:
            # The loop counts from elsewhere, or also the steps that a gradient scaler skipped.
            self._journal.renumber(step - present)
            sensor.step += step - present
        self._aligned = True
        metrics = plain_values(metrics)
        self._journal.tell(step, metrics)
        loss = metrics.get("loss")
        if isinstance(loss, float) and loss - loss != 0 and self._nonfinite is None:
            why = "the model's forward pass returns no loss, so that it was seen only when it was logged"
            self._on_nonfinite(NonFinite(step=step, where="loss", why_unknown=why))

    def _evaluated(self, record: Mapping[str, Any]) -> None:
        values = plain_values({"step": self._sensor.step - 1, **record})
        self._evaluations.append(schema.evaluation_of(values))
        self._journal.row("evaluate", values)
        self._judge()

    # Judging

    def _judge(self) -> None:
        if not self._judging.on:
            return
        report = self.report()
        for finding in self._judging.gone(report):
            self._withdraw(finding)
        for finding in self._judging.new(report):
            self._journal.finding(finding, self._sensor.step - 1)
            if self._on_finding is not None:
                self._on_finding(finding)
        self._journal.tracks(*self.evidence())

    def _withdraw(self, finding: Finding) -> None:
        gone = Withdrawn(
            rule=finding.rule,
            code=finding.code,
            severity=str(finding.severity),
            message=finding.message,
            since=finding.step,
            step=self._sensor.step - 1,
        )
        self._withdrawn.append(gone)
        self._journal.withdrawn(gone)
        if self._on_withdrawn is not None:
            self._on_withdrawn(finding, gone.step)

    def _parameters(self) -> Parameters:
        model = self._model()
        if model is not None and not self._ended:
            with naming(self._said):
                self._known_parameters = parameters_of(model, self._sensor.held, self._trainable)
        return self._known_parameters or Parameters(parameters=())

    def _end(self, error: BaseException | str | None) -> None:
        self._judge()
        evidence = self.evidence()
        self._ended = True
        self._journal.tracks(*evidence, now=True)
        if isinstance(error, BaseException):
            error = words(error)
        self._error = error or ""
        seconds = time.perf_counter() - self._started
        row = {"step": self._sensor.step - 1, "finished": self._finished, "seconds": round(seconds, 3)}
        self._journal.end(row | ({"error": error} if error else {}))


watch = Watcher
