"""A run folder as columns of numbers, ready to be drawn."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlmdoctor.errors import UserError
from vlmdoctor.knowledge.parameter_names import ROLES

GRAD_NORM, UPDATE_RATIO, LAYER = "grad_norm/", "update_ratio/", "grad_norm/layer/"


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
        info: `run.json`: configuration, parameters, planned steps; empty where it is missing.
        tracks: `tracks.json`; empty where the run was not watched or cut off.
        summary: `summary.json`; empty where the run was cut off before it was written.
        columns: Name of a step's column -> its series; a step that was repeated after a resume counts once.
        evaluations: Name of an evaluation's column -> its series.
        findings: The `finding` rows, in order.
        end: The last `end` row; empty where the run was cut off.
        broken_lines: Lines of `run.jsonl` that could not be read.
    """

    folder: Path
    info: Mapping[str, Any] = field(default_factory=dict)
    tracks: Mapping[str, Any] = field(default_factory=dict)
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
    def parameters(self) -> list[Mapping[str, Any]]:
        """The model's parameters, as `vlmdoctor.evidence.parameters.Parameter` in plain values."""
        # The list in tracks.json is newer: optimizers may be made, and parts unfrozen, after the start.
        return self.tracks.get("parameters") or self.info.get("parameters") or []

    @property
    def last_step(self) -> int | None:
        """The last step that was recorded."""
        last = [int(series.steps[-1]) for series in self.columns.values() if len(series)]
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
        having = {p["role"] for p in self.parameters}
        training = {p["role"] for p in self.parameters if p["requires_grad"]}
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
                stack, _, number = name.removeprefix(LAYER).rpartition(".")
                if number.isdigit():
                    found.setdefault(stack, []).append((int(number), series))
        return {stack: sorted(layers, key=lambda layer: layer[0]) for stack, layers in sorted(found.items())}


def read_recording(folder: Path) -> Recording:
    """Reads a run folder; a run that was killed leaves half a last line, which is passed over.

    Raises:
        UserError: The folder holds no recorded run.
    """
    path = folder / "run.jsonl"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no recorded run (no run.jsonl in it); give the --out folder of a watched run."
        )
    steps, evaluations, findings, end, broken = _Columns(), _Columns(), [], {}, 0
    for row in _rows(path):
        event = row.get("event")
        if event == "step":
            steps.add(row)
        elif event == "evaluate":
            evaluations.add(row)
        elif event == "finding":
            findings.append(row)
        elif event == "end":
            end = row
        elif event is None:
            broken += 1
    return Recording(
        folder=folder,
        info=_read_json(folder / "run.json"),
        tracks=_read_json(folder / "tracks.json"),
        summary=_read_json(folder / "summary.json"),
        columns=steps.series(),
        evaluations=evaluations.series(),
        findings=tuple(findings),
        end=end,
        broken_lines=broken,
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = {}
            yield row if isinstance(row, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


class _Columns:
    """Gathers rows into columns; compact, since a long run has millions of numbers."""

    def __init__(self) -> None:
        self._steps: dict[str, array] = {}
        self._values: dict[str, array] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        step = row.get("step")
        if not isinstance(step, int):
            return
        for name, value in row.items():
            number = _number(value)
            if number is not None and name != "step":
                self._steps.setdefault(name, array("q")).append(step)
                self._values.setdefault(name, array("d")).append(number)

    def series(self) -> dict[str, Series]:
        found = {}
        for name, steps in self._steps.items():
            # Of a step that was repeated after a resume, the later row counts: np.unique keeps the first,
            # so look from the end.
            unique, place = np.unique(np.array(steps)[::-1], return_index=True)
            found[name] = Series(unique, np.array(self._values[name])[::-1][place])
        return found


def _number(value: object) -> float | None:
    """A number, also where JSON could not hold it and a word stands for it; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return float(value)
    return None
