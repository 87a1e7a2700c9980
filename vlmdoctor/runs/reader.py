"""Reads a run folder back, so that a finished or broken run is judged by the very same rules."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import UserError
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.plain_text import first_line, raised
from vlmdoctor.runs import schema

if TYPE_CHECKING:
    import pandas


def read_run(folder: str | os.PathLike[str]) -> tuple[Parameters, Steps]:
    """The evidence in a run folder; raises `UserError` where there is no readable run in it."""
    info = read_info(folder)
    rows = read_rows(folder)
    tracks = _read_whole(Path(folder) / schema.TRACKS, missing={})
    try:
        return _parameters(info, tracks), _steps(info, rows, tracks)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the run folder '{folder}' is not as vlmdoctor writes it ({raised(error)}); "
            f"was it written by another version, or changed by hand?"
        ) from error


def read_info(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `run.json` says: target, command, config, planned steps and parameters."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"there is no run folder '{folder}'; give the folder that the run was recorded to.")
    if not (path / schema.RUN).exists():
        raise UserError(f"'{folder}' is not a run folder: it has no {schema.RUN}.")
    return _read_whole(path / schema.RUN)


def read_rows(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of `run.jsonl` in the order written; a line torn by a kill is passed over."""
    path = Path(folder) / schema.ROWS
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(f"'{folder}' has no {schema.ROWS}: nothing was recorded in it.") from None
    except OSError as error:
        raise UserError(f"'{path}' can't be read ({error.strerror}).") from error
    rows = []
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "event" in row:
            rows.append(row)
    return rows


def frame(folder: str | os.PathLike[str]) -> pandas.DataFrame:
    """All rows as a DataFrame, one row for each event and one column for each field."""
    import pandas

    return pandas.DataFrame(read_rows(folder))


def _parameters(info: dict[str, Any], tracks: dict[str, Any]) -> Parameters:
    # Parameters may be unfrozen and learning rates warmed up after the start: the newer list wins.
    entries = tracks.get("parameters") or info["parameters"]
    return Parameters(
        parameters=tuple(schema.parameter_of(entry) for entry in entries),
        adapters=bool(tracks.get("adapters", info.get("adapters", False))),
        vocab_size=info.get("vocab_size"),
        foreign=int(tracks.get("foreign", info.get("foreign", 0))),
        unmatched=tuple(tracks.get("unmatched", info.get("unmatched", ()))),
    )


def _steps(info: dict[str, Any], rows: list[dict[str, Any]], tracks: dict[str, Any]) -> Steps:
    steps: dict[int, dict[str, Any]] = {}
    evaluations, nonfinite, finished = {}, None, False
    for row in rows:
        match row["event"]:
            case "step":
                # A row of a step repeated after a resume comes later and wins, column by column.
                steps[int(row["step"])] = {**steps.get(int(row["step"]), {}), **row}
                finished = False
            case "evaluate":
                evaluations[int(row["step"])] = schema.evaluation_of(row)
            case "nonfinite":
                nonfinite = nonfinite or schema.nonfinite_of_row(row)
            case "end":
                finished = bool(row.get("finished"))
    return Steps(
        steps=tuple(schema.step_of_row(steps[step]) for step in sorted(steps)),
        tracks=tuple(schema.track_of(entry) for entry in tracks.get("tracks", ())),
        evaluations=tuple(evaluations[step] for step in sorted(evaluations)),
        nonfinite=nonfinite,
        planned_steps=info.get("total_steps"),
        finished=finished,
        resumed=info.get("resumed"),
        accumulates_without_reset=tracks.get("accumulates_without_reset"),
        required_accuracy=info.get("required_accuracy"),
    )


def _read_whole(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is None:
            raise UserError(f"'{path}' is missing.") from None
        return missing
    except OSError as error:
        raise UserError(f"'{path}' can't be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"'{path}' holds no JSON ({first_line(error)}).") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is not as vlmdoctor writes it: it holds no JSON object.")
    return content
