"""The run folder's files and rows: what the recorder writes and what is read back.

`run.json` says what is run, `run.jsonl` has one flat row for each event, `tracks.json` the statistics
of each parameter. Rows may hold NaN and Infinity, as Python, pandas and jq read and write them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlmdoctor.evidence.parameters import Parameter
from vlmdoctor.evidence.steps import Evaluation, NonFinite, Step, Track

SCHEMA_VERSION = 1
RUN = "run.json"
ROWS = "run.jsonl"
TRACKS = "tracks.json"

_ROLE, _LAYER, _RATIO = "grad_norm/", "grad_norm/layer/", "update_ratio/"
_PLAIN = ("step", "loss", "lr", "grad_norm", "grad_norm_after", "supervised_tokens", "images")


def row_of_step(step: Step) -> dict[str, Any]:
    """The columns of a step; those that are not known are left out."""
    row = {name: value for name in _PLAIN if (value := getattr(step, name)) is not None}
    row |= {_ROLE + role: norm for role, norm in step.role_grad_norms.items()}
    row |= {_RATIO + role: ratio for role, ratio in step.role_update_ratios.items()}
    row |= {_LAYER + layer: norm for layer, norm in step.layer_grad_norms.items()}
    return row


def step_of_row(row: Mapping[str, Any]) -> Step:
    """The step that a row tells of; columns of no concern are passed over."""
    roles, layers, ratios = {}, {}, {}
    for column, value in row.items():
        if value is None:
            continue
        if column.startswith(_LAYER):
            layers[column.removeprefix(_LAYER)] = float(value)
        elif column.startswith(_ROLE):
            roles[column.removeprefix(_ROLE)] = float(value)
        elif column.startswith(_RATIO):
            ratios[column.removeprefix(_RATIO)] = float(value)
    return Step(
        step=int(row["step"]),
        loss=_number(row, "loss"),
        lr=_number(row, "lr"),
        grad_norm=_number(row, "grad_norm"),
        grad_norm_after=_number(row, "grad_norm_after"),
        role_grad_norms=roles,
        layer_grad_norms=layers,
        role_update_ratios=ratios,
        supervised_tokens=_count(row, "supervised_tokens"),
        images=_count(row, "images"),
    )


def evaluation_of(record: Mapping[str, Any]) -> Evaluation:
    """The evaluation in a trainer's record or a row."""
    values = {name: _number(record, name) for name in ("loss", "loss_shuffled", "loss_blank")}
    values |= {name: _number(record, name) for name in ("accuracy", "accuracy_shuffled")}
    return Evaluation(step=int(record["step"]), samples=_count(record, "samples"), **values)


def nonfinite_of_row(row: Mapping[str, Any]) -> NonFinite:
    """The non-finite value that a row tells of."""
    names = {field.name for field in dataclasses.fields(NonFinite)}
    values = {name: value for name, value in row.items() if name in names}
    lists = {name: tuple(values.get(name) or ()) for name in ("parameters", "inputs")}
    return NonFinite(**{**values, **lists})


def parameter_of(entry: Mapping[str, Any]) -> Parameter:
    """A parameter as listed in `run.json`."""
    names = {field.name for field in dataclasses.fields(Parameter)}
    values = {name: value for name, value in entry.items() if name in names}
    return Parameter(**{**values, "shape": tuple(values["shape"])})


def track_of(entry: Mapping[str, Any]) -> Track:
    """A parameter's statistics as listed in `tracks.json`."""
    names = {field.name for field in dataclasses.fields(Track)}
    return Track(**{name: value for name, value in entry.items() if name in names})


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return None if value is None else float(value)


def _count(row: Mapping[str, Any], name: str) -> int | None:
    value = _number(row, name)
    return None if value is None else int(value)
