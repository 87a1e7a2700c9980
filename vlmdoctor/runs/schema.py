"""The run folder's files and rows: what the recorder writes and what is read back.

`run.json` says what is run, `run.jsonl` has one flat row for each event, `tracks.json` the statistics
of each parameter. Rows may hold NaN and Infinity, as Python, pandas and jq read and write them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlmdoctor.evidence.parameters import Parameter
from vlmdoctor.evidence.steps import Evaluation, NonFinite, Step, Track, Withdrawn
from vlmdoctor.knowledge.parameter_names import ROLES
from vlmdoctor.runs.typed import LeftOut, built, number

SCHEMA_VERSION = 1
RUN = "run.json"
ROWS = "run.jsonl"
TRACKS = "tracks.json"
SUMMARY = "summary.json"

GRAD_NORM, UPDATE_RATIO, LAYER = "grad_norm/", "update_ratio/", "grad_norm/layer/"
_PLAIN = ("step", "loss", "lr", "grad_norm", "grad_norm_after", "supervised_tokens", "images")
_COUNTS = ("supervised_tokens", "images", "samples")
_SHARES = ("accuracy", "accuracy_shuffled")
_NUMBERS = {
    "step": {*_PLAIN} - {"step"},
    "evaluate": {field.name for field in dataclasses.fields(Evaluation)} - {"step"},
}
_PLACES = ("loss", "activation", "gradient", "weight")  # of a value that is not finite

# What else is read of run.json and tracks.json, by name; the parameters and tracks are lists of objects.
INFO_TYPES: dict[str, Any] = {
    "target": str | None,
    "created": str | None,
    "config": dict | None,
    "total_steps": int | None,
    "resumed": bool | None,
    "vocab_size": int | None,
    "required_accuracy": float | None,
    "adapters": bool,
    "foreign": int,
    "unmatched": tuple[str, ...],
    "accumulates_without_reset": bool | None,
}


def row_of_step(step: Step) -> dict[str, Any]:
    """The columns of a step; those that are not known are left out."""
    row = {name: value for name in _PLAIN if (value := getattr(step, name)) is not None}
    row |= {GRAD_NORM + role: norm for role, norm in step.role_grad_norms.items()}
    row |= {UPDATE_RATIO + role: ratio for role, ratio in step.role_update_ratios.items()}
    row |= {LAYER + layer: norm for layer, norm in step.layer_grad_norms.items()}
    return row


def withdrawn_of(row: Mapping[str, Any]) -> Withdrawn:
    """The `withdrawn` row of a finding."""
    texts = {name: str(row.get(name) or "") for name in ("rule", "code", "severity", "message")}
    since = row.get("since")
    return Withdrawn(**texts, since=since if isinstance(since, int) else None, step=row["step"])


def typed_row(row: Mapping[str, Any], place: str, left_out: LeftOut) -> dict[str, Any] | None:
    """The row with numbers where numbers belong; None where it lacks its step.

    Columns of other tools and other events are kept as they are.
    """
    event = row["event"]
    if event not in ("step", "evaluate", "nonfinite"):
        return dict(row)
    step = row.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**53:
        left_out.add(f"'step' of {place}")
        return None
    kept: dict[str, Any] = {}
    measured = _NUMBERS.get(event, set())
    for name, value in row.items():
        if name in measured or (event == "step" and name.startswith((GRAD_NORM, UPDATE_RATIO))):
            if value is None:
                continue
            if (found := _measured(name, value)) is None:
                left_out.add(f"'{name}' of {place}")
                continue
            value = found
        kept[name] = value
    return kept


def _measured(name: str, value: object) -> float | int | None:
    """The number in a column, None where it is none or can't be one."""
    found = number(value)
    if found is None:
        return None
    if name in _COUNTS:
        return int(found) if 0 <= found < 2**53 else None
    return found if name not in _SHARES or not (found < 0 or found > 1) else None


def step_of_row(row: Mapping[str, Any]) -> Step:
    """The step in a row of numbers; columns of no concern are passed over."""
    roles, layers, ratios = {}, {}, {}
    for column, value in row.items():
        if value is None:
            continue
        if column.startswith(LAYER):
            layers[column.removeprefix(LAYER)] = float(value)
        elif column.startswith(GRAD_NORM):
            roles[column.removeprefix(GRAD_NORM)] = float(value)
        elif column.startswith(UPDATE_RATIO):
            ratios[column.removeprefix(UPDATE_RATIO)] = float(value)
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
    """The evaluation in a trainer's record or a row of numbers."""
    values = {name: _number(record, name) for name in ("loss", "loss_shuffled", "loss_blank")}
    values |= {name: _number(record, name) for name in _SHARES}
    return Evaluation(step=int(record["step"]), samples=_count(record, "samples"), **values)


def nonfinite_of_row(row: Mapping[str, Any], place: str, left_out: LeftOut) -> NonFinite | None:
    """The non-finite value that a row tells of; None where it names no place."""
    lists = {name: row.get(name) or [] for name in ("parameters", "inputs")}
    found = built(NonFinite, {**row, **lists}, place, left_out)
    if found is not None and found.where not in _PLACES:
        left_out.add(f"'where' of {place}")
        return None
    return found


def parameter_of(entry: object, place: str, left_out: LeftOut) -> Parameter | None:
    """A parameter as listed in `run.json`; None where it is none."""
    found = built(Parameter, entry, place, left_out)
    if found is not None and found.role not in ROLES:
        left_out.add(f"'role' of {place}")
        return None
    return found


def track_of(entry: object, place: str, left_out: LeftOut) -> Track | None:
    """A parameter's statistics as listed in `tracks.json`; None where they are none."""
    return built(Track, entry, place, left_out)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return None if value is None else float(value)


def _count(row: Mapping[str, Any], name: str) -> int | None:
    value = _number(row, name)
    return None if value is None else int(value)
