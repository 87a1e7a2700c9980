"""A run folder as columns of numbers, ready to be drawn."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.knowledge.parameter_names import ROLES
from vlmdoctor.runs.reader import RunFiles, read_files
from vlmdoctor.runs.schema import GRAD_NORM, LAYER, row_of_step
from vlmdoctor.runs.typed import number


@dataclass(frozen=True)
class Series:
    """One quantity over the steps at which it was recorded: steps int64 [N], values float64 [N]."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def finite(self) -> Series:
        """The same without NaN and infinity."""
        keep = np.isfinite(self.values)
        return Series(self.steps[keep], self.values[keep])


EMPTY = Series(np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True)
class Recording:
    """What a run folder holds.

    Attributes:
        folder: The run folder.
        info: `run.json`: configuration, planned steps; empty where it is missing.
        parameters: The model's parameters; none where they were not recorded.
        summary: `summary.json`; empty where the run was cut off before it was written.
        columns: Name of a step's column -> its series; a step that was repeated after a resume counts once.
        evaluations: Name of an evaluation's column -> its series.
        findings: The `finding` rows, in order.
        end: The last `end` row; empty where the run was cut off.
        broken_lines: Lines of `run.jsonl` that could not be read.
    """

    folder: Path
    info: Mapping[str, Any] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Series] = field(default_factory=dict)
    evaluations: Mapping[str, Series] = field(default_factory=dict)
    findings: tuple[Mapping[str, Any], ...] = ()
    end: Mapping[str, Any] = field(default_factory=dict)
    broken_lines: int = 0

    @property
    def config(self) -> Mapping[str, Any]:
        """The trainer's configuration."""
        return self.info.get("config") or {}

    @property
    def last_step(self) -> int | None:
        """The last step that was made."""
        last = [int(series.steps[-1]) for series in self.columns.values() if len(series)]
        # The last steps may not have been sampled.
        if isinstance(ended := self.end.get("step"), int) and ended >= 0:
            last.append(ended)
        return max(last, default=None)

    @property
    def total_steps(self) -> int | None:
        """How long the run was meant to be."""
        return self.info.get("total_steps")

    @property
    def watched(self) -> bool:
        """Whether gradients were measured."""
        return bool(self.roles)

    @property
    def roles(self) -> list[str]:
        """The roles whose gradients were measured, in the order of the architecture."""
        return [role for role in ROLES if GRAD_NORM + role in self.columns]

    @property
    def frozen_roles(self) -> list[str]:
        """The roles that have parameters, none of which is trainable."""
        having = {p.role for p in self.parameters}
        training = {p.role for p in self.parameters if p.requires_grad}
        return [role for role in ROLES if role in having - training]

    def column(self, name: str) -> Series:
        """A step's column; empty where nothing was recorded under this name."""
        return self.columns.get(name, EMPTY)

    def evaluation(self, name: str) -> Series:
        """An evaluation's column; empty where nothing was recorded under this name."""
        return self.evaluations.get(name, EMPTY)

    def stacks(self) -> dict[str, list[tuple[int, Series]]]:
        """Stack of layers (such as `model.language_model.layers`) -> (number, gradient norms) of each."""
        found: dict[str, list[tuple[int, Series]]] = {}
        for name, series in self.columns.items():
            if name.startswith(LAYER):
                stack, _, place = name.removeprefix(LAYER).rpartition(".")
                if re.fullmatch("[0-9]{1,6}", place):
                    found.setdefault(stack, []).append((int(place), series))
        return {stack: sorted(layers, key=lambda layer: layer[0]) for stack, layers in sorted(found.items())}


def read_recording(folder: Path) -> Recording:
    """Reads a run folder; a run that was killed leaves half a last line, which is passed over.

    Raises:
        UserError: The folder holds no recorded run, or a file of it can't be read.
    """
    return recording_of(read_files(folder))


def recording_of(files: RunFiles) -> Recording:
    """The columns of a run folder that was read."""
    steps, evaluations = _Columns(), _Columns()
    findings: list[Mapping[str, Any]] = []
    end: Mapping[str, Any] = {}
    for row in files.rows:
        match row["event"]:
            case "step":
                steps.add(row)
            case "evaluate":
                evaluations.add(row)
            case "finding":
                findings.append(row)
            case "end":
                end = row
    return Recording(
        folder=files.folder,
        info=files.info or {},
        parameters=files.parameters or (),
        summary=files.summary,
        columns=steps.series(),
        evaluations=evaluations.series(),
        findings=tuple(findings),
        end=end,
        broken_lines=files.broken_lines,
    )


def recording_of_run(target: str, parameters: Parameters, steps: Steps) -> Recording:
    """The columns of a run that is in memory, recorded in a folder or not."""
    columns, evaluations = _Columns(), _Columns()
    for step in steps.steps:
        columns.add(row_of_step(step))
    for evaluation in steps.evaluations:
        evaluations.add(vars(evaluation))
    wanted = {"total_steps": steps.planned_steps, "required_accuracy": steps.required_accuracy}
    last = vars(steps.evaluations[-1]) if steps.evaluations else {}
    return Recording(
        folder=Path(target),
        info={"target": target, **{name: value for name, value in wanted.items() if value is not None}},
        parameters=parameters.parameters,
        summary={name: value for name, value in last.items() if value is not None},
        columns=columns.series(),
        evaluations=evaluations.series(),
        end={"finished": steps.finished},
    )


class _Columns:
    """Gathers rows into columns; compact, since a long run has millions of numbers."""

    def __init__(self) -> None:
        self._steps: dict[str, array] = {}
        self._values: dict[str, array] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            found = number(value)
            if found is not None and name != "step":
                self._steps.setdefault(name, array("q")).append(row["step"])
                self._values.setdefault(name, array("d")).append(found)

    def series(self) -> dict[str, Series]:
        found = {}
        for name, steps in self._steps.items():
            # Of a step that was repeated after a resume, the later row counts: np.unique keeps the first,
            # so look from the end.
            unique, place = np.unique(np.array(steps)[::-1], return_index=True)
            found[name] = Series(unique, np.array(self._values[name])[::-1][place])
        return found
