"""The steps of a run as they become known: in memory for the rules, as rows in the run folder."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Step, Steps, Withdrawn
from vlmdoctor.finding import Finding
from vlmdoctor.runs import schema
from vlmdoctor.runs.writer import Recorder
from vlmdoctor.watching.recent_steps import RecentSteps

TRACKS_SECONDS = 10.0
_IN_STEP = ("loss", "lr", "supervised_tokens", "images")


class Journal:
    """Joins what the hooks measured in a step with what the loop tells of it, into one row.

    The latest step stays open until it was reported, or the next one is made.

    Attributes:
        last: Number of the latest step made; None before the first.
    """

    def __init__(self, out: str | os.PathLike[str] | None, *, resumed: bool) -> None:
        self.last: int | None = None
        self._recorder = Recorder(out, resumed=resumed) if out is not None and rank() == 0 else None
        self._history = RecentSteps()
        self._started = time.perf_counter()
        self._open: Step | None = None
        self._sampled = False
        self._told: tuple[int, dict[str, Any]] | None = None  # of a step in progress or open
        self._next_tracks = 0.0

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps kept, the open one included."""
        return (*self._history.steps, *([self._joined(self._open)] if self._open else []))

    def start(self, info: Mapping[str, Any], parameters: Parameters) -> None:
        """Writes `run.json`."""
        if self._recorder:
            created = datetime.now(UTC).isoformat(timespec="seconds")
            self._recorder.start({"created": created, **info, **dataclasses.asdict(parameters)})

    def made(self, step: Step, sampled: bool) -> None:
        """A step was made; it may yet be reported."""
        self._settle()
        self._open, self._sampled, self.last = step, sampled, step.step

    def tell(self, step: int, metrics: dict[str, Any]) -> None:
        """The loop tells of a step: the latest, the one in progress, or one long past."""
        if "grad_norm" in metrics:
            # The column is for norms measured here, of whose roles and layers there are columns too.
            metrics["grad_norm_logged"] = metrics.pop("grad_norm")
        if self.last is not None and step < self.last:
            self.row("step", {"step": step, **metrics})
            return
        if self._told is not None and self._told[0] == step:
            metrics = {**self._told[1], **metrics}
        elif self._told is not None:
            self._settle()
            self._settle_told()
        self._told = (step, metrics)
        if self._open is not None and step == self.last:
            self._settle()

    def renumber(self, shift: int) -> None:
        """The loop counts differently, or counts steps that were skipped: the latest is renumbered."""
        if self.last is not None:
            self.last += shift
        if self._open is not None:
            self._settle_told()
            self._open = dataclasses.replace(self._open, step=self._open.step + shift)

    def finding(self, finding: Finding, step: int) -> None:
        """Writes a finding's row."""
        row = {
            "step": finding.step if finding.step is not None else step,
            "rule": finding.rule,
            "code": finding.code,
            "severity": str(finding.severity),
            "message": finding.message,
            "at": ", ".join(finding.at),
            "cause": finding.cause,
            "fix": finding.fix.text if finding.fix else None,
        }
        self.row("finding", row)

    def withdrawn(self, gone: Withdrawn) -> None:
        """Writes the row of a finding that no longer holds."""
        self.row("withdrawn", vars(gone))

    def row(self, event: str, values: Mapping[str, Any]) -> None:
        """Writes a row."""
        if self._recorder:
            self._recorder.row(event, values)

    def tracks(self, parameters: Parameters, steps: Steps, *, now: bool = False) -> None:
        """Rewrites `tracks.json`, though not at every call."""
        if self._recorder and (now or time.perf_counter() >= self._next_tracks):
            self._next_tracks = time.perf_counter() + TRACKS_SECONDS
            known = {"accumulates_without_reset": steps.accumulates_without_reset}
            self._recorder.tracks(steps.tracks, {**known, **dataclasses.asdict(parameters)})

    def end(self, row: Mapping[str, Any]) -> None:
        """Writes what is left and the last row, and closes the folder."""
        self._settle()
        self._settle_told()
        self.row("end", row)
        if self._recorder:
            self._recorder.close()

    def abandon(self) -> None:
        """Records nothing more."""
        if self._recorder:
            self._recorder.abandon()

    def _joined(self, step: Step) -> Step:
        told = self._told[1] if self._told and self._told[0] == step.step else {}
        return dataclasses.replace(step, **_fields(told))

    def _settle(self) -> None:
        """Ends the open step: into memory, and into the folder if it was sampled or reported."""
        if self._open is None:
            return
        step = self._joined(self._open)
        told = {}
        if self._told and self._told[0] == step.step:
            told, self._told = self._told[1], None
        self._history.add(step)
        self._open = None
        if self._sampled or told:
            seconds = round(time.perf_counter() - self._started, 3)
            self.row("step", {"step": step.step, "seconds": seconds, **told, **schema.row_of_step(step)})

    def _settle_told(self) -> None:
        """What was reported of a step that no optimizer made, or that is settled already."""
        if self._told is None:
            return
        step, metrics = self._told
        self._told = None
        last = self._history.steps[-1] if self._history.steps else None
        if last is not None and last.step == step:
            self._history.steps[-1] = dataclasses.replace(last, **_fields(metrics))
        else:
            self._history.add(Step(step=step, **_fields(metrics)))
        self.row("step", {"step": step, **metrics})


def _fields(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in _IN_STEP if isinstance(metrics.get(name), int | float)}


def rank() -> int:
    """The number of this process among those that train together; 0 where it is alone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    try:
        return int(os.environ.get("RANK") or 0)
    except ValueError:
        return 0  # no launcher's: watching goes on


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and texts among them, as JSON has them; what is neither is left out."""
    return {name: plain for name, value in values.items() if (plain := _plain(value)) is not None}


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a scalar tensor or numpy number
        value = value.item()
    return value if isinstance(value, str | int | float) else None
