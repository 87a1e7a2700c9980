"""Joins a run of the trainer from outside: checks it, watches it, records it and shows it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivlm.callbacks import Callback
from minivlm.lock import FolderLock
from minivlm.progress import Paced, line
from vlmdoctor.engine import fold
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.live.display import Display
from vlmdoctor.live.preflight import preflight
from vlmdoctor.live.state import LiveState
from vlmdoctor.plain_text import first_line
from vlmdoctor.report import Report
from vlmdoctor.rulebook import Rule, all_rules
from vlmdoctor.runs.conclusion import judge_run

if TYPE_CHECKING:
    from minivlm.run import Run
    from vlmdoctor.watching.watcher import Watcher

# How often it is looked whether what was found still holds, while anything is open.
LOOK_AGAIN_SECONDS = 15.0


class PreflightStop(BaseException):
    """An error was found before the first step. No Exception, which the trainer would take for the callback's
    own failure and go on without it."""


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the user wants of the session.

    Attributes:
        every: Sample gradients every so many steps; 0 for never.
        preflight: Whether to check before the first step.
        rules: The rules that judge the run.
        preflight_rules: The rules that judge the model before it.
        required_accuracy: The share of right answers below which the run fails.
        fail_on: The least severity that fails.
        command: The command as typed.
    """

    every: int
    preflight: bool
    rules: Sequence[Rule]
    preflight_rules: Sequence[Rule]
    required_accuracy: float | None
    fail_on: str
    command: str


class Session(Callback):
    """One run as seen from outside.

    Attributes:
        run: The trainer's run; None before it began.
        watcher: What watches it; None before it began.
        before: What the preflight found; None where there was none.
    """

    def __init__(self, wishes: Wishes, state: LiveState, display: Display) -> None:
        self.run: Run | None = None
        self.watcher: Watcher | None = None
        self.before: Report | None = None
        self._wishes = wishes
        self._state = state
        self._display = display
        self._selected = {rule.name for rule in wishes.rules}
        self._lock: FolderLock | None = None
        self._shown_sample: int | None = None
        self._looked = time.monotonic()
        self._answers = 0  # of the evaluation under way
        self._paced = Paced(lambda done, total: self._display.evaluating(done, total))

    @property
    def folder(self) -> Path | None:
        """The run folder; None before the run began."""
        return self.run.out if self.run is not None else None

    def on_train_begin(self, run: Run) -> None:
        from vlmdoctor.watching.watcher import Watcher

        self.run = run
        # Plots and report are made when the trainer has left the folder.
        self._lock = FolderLock.take(run.out, join=True)
        self._describe(run)
        if self._wishes.preflight and not run.resumed:
            self._check(run)
        self.watcher = Watcher(
            run.model,
            run.optimizer,
            every=self._wishes.every,
            out=run.out,
            trainable=run.trainable_patterns,
            scaler=run.scaler,
            on_finding=self._found,
            total_steps=run.total_steps,
            target=f"minivlm:{run.config.preset}",
            command=self._wishes.command,
            config=dataclasses.asdict(run.config),
            resumed=run.resumed or run.config.init_from is not None,
            first_step=run.first_step,
            required_accuracy=self._wishes.required_accuracy,
        )
        self._state.describe(self.watcher.evidence()[0].parameters)
        self._state.phase = "first step"
        self._display.begin()

    def on_log(self, run: Run, record: Mapping[str, Any]) -> None:
        if self.watcher is None:
            return
        self.watcher.log(**record)
        self._state.log(record)
        self._show_sample()
        self._display.log(record)
        self._look_again(LOOK_AGAIN_SECONDS)

    def on_evaluate(self, run: Run, record: Mapping[str, Any]) -> None:
        if self.watcher is None:
            return
        self.watcher.evaluated(record)
        self._state.evaluated(record)
        self._display.evaluated(record)
        self._look_again(0.0)

    def on_evaluating(self, run: Run, done: int, total: int) -> None:
        self._state.phase = line(done, total)
        if self._answers == 0:
            self._paced = Paced(lambda done, total: self._display.evaluating(done, total))
        self._answers = done if done < total else 0
        self._paced(done, total)

    def on_train_end(self, run: Run, summary: Any) -> None:
        self._end(None, "done")

    def on_exception(self, run: Run, error: BaseException) -> None:
        self._end(error, "stopped")

    def judgement(self, seconds: float) -> Report:
        """What the rules say of the whole run, the preflight's findings among it."""
        facts = {"folder": str(self.folder)} if self.folder else {}
        target = f"minivlm:{self.run.config.preset}" if self.run else "minivlm"
        if self.watcher is None:
            report = self.before or Report(command="train", target=target)
            return dataclasses.replace(
                report, command="train", facts={**report.facts, **facts}, seconds=seconds
            )
        report = judge_run(
            *self.watcher.evidence(),
            self._wishes.rules,
            command="train",
            target=target,
            fail_on=self._wishes.fail_on,
            facts=facts,
        )
        return dataclasses.replace(_joined(report, self.before), seconds=seconds)

    def release(self) -> None:
        """Leaves the run folder to others; more calls do no harm."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _describe(self, run: Run) -> None:
        from minivlm.setup import choose_dtype

        config, state = run.config, self._state
        dtype = choose_dtype(config.precision, run.device)
        precision = "fp32" if dtype is None else str(dtype).removeprefix("torch.")
        state.place = f"{run.device}, {precision}"
        state.total_steps, state.clip = run.total_steps, config.clip
        state.eval_every = config.eval_every or 0 if config.eval_samples else 0
        state.log_every = config.log_every
        if run.resumed:
            state.title += f", resumed at step {run.first_step:,}"

    def _check(self, run: Run) -> None:
        self._state.phase = "checking before the first step"
        try:
            report = preflight(run, self._wishes.preflight_rules, fail_on=self._wishes.fail_on)
        except Exception as error:
            said = first_line(error)
            self._display.say(
                f"the checks before the first step could not be made, so they are left out: {said}"
            )
            return
        self.before = report
        if any(f.severity is Severity.ERROR for f in report.findings) and self._wishes.fail_on != "never":
            raise PreflightStop
        for finding in report.findings:
            self._found(finding)

    def _found(self, finding: Finding) -> None:
        wanted = finding.rule in self._selected or (self.before and finding in self.before.findings)
        if wanted and self._state.arose(finding):
            self._display.noticed(finding)

    def _show_sample(self) -> None:
        from vlmdoctor.runs.schema import row_of_step

        sample = self.watcher.sampled if self.watcher else None
        if sample is not None and sample.step != self._shown_sample:
            self._shown_sample = sample.step
            self._state.sample(row_of_step(sample))

    def _look_again(self, after: float) -> None:
        """Finds out whether what was found still holds; a plateau may be over."""
        open_now = any(noticed.gone is None for noticed in self._state.noticed.values())
        if self.watcher is None or not open_now or time.monotonic() - self._looked < after:
            return
        self._looked = time.monotonic()
        report = judge_run(*self.watcher.evidence(), self._wishes.rules, command="train", target="")
        new, over = self._state.judged(_joined(report, self.before).findings)
        for finding in over:
            self._display.withdrawn(finding, self._state.step or 0)
        for finding in new:
            self._display.noticed(finding)

    def _end(self, error: BaseException | None, phase: str) -> None:
        if self.watcher is not None:
            if self.run is not None and not self.run.out.is_dir():
                self.watcher._journal.abandon()  # the trainer says why it ended
            self.watcher.close(error)
            self._look_again(0.0)
        self._state.phase = phase
        self._display.stop()


def _joined(report: Report, before: Report | None) -> Report:
    """The run's report with what only the preflight found; a cause among it leads."""
    if before is None:
        return report
    told = {finding.rule for finding in report.findings}
    symptoms = {symptom for finding in report.findings for symptom in finding.symptoms}
    more = [f for f in before.findings if f.rule not in told and f.message not in symptoms]
    ran = [name for name in before.ran if name not in report.ran]
    known = {*report.ran, *ran}
    skipped = {name: reason for name, reason in (*before.skipped, *report.skipped) if name not in known}
    return dataclasses.replace(
        report,
        findings=tuple(
            fold((*(_borne_out(f, report.findings) for f in more), *report.findings), all_rules())
        ),
        ran=(*report.ran, *ran),
        skipped=tuple(skipped.items()),
        crashed=(*report.crashed, *before.crashed),
    )


def _borne_out(suspicion: Finding, found: Sequence[Finding]) -> Finding:
    """A warning of before the run, as severe as what the run showed of it: it is a suspicion no longer.

    Folding the run's error below a mere warning would hide that the run failed.
    """
    if suspicion.severity is Severity.INFO:
        return suspicion
    explains = next((rule.explains for rule in all_rules() if rule.name == suspicion.rule), ())
    severities = [suspicion.severity, *(one.severity for one in found if one.rule in explains)]
    return dataclasses.replace(suspicion, severity=max(severities, key=lambda severity: severity.rank))
