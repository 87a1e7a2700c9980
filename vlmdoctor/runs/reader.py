"""The one reader of run folders: its files with bounds, its values by type, for rules and plots."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from vlmdoctor import boundary
from vlmdoctor.errors import UserError
from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.evidence.steps import NonFinite, Steps, Track, Withdrawn
from vlmdoctor.runs import schema
from vlmdoctor.runs.typed import LeftOut, chosen

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")

MOST_ROWS = 4 << 30  # bytes of run.jsonl: of two million steps, each with the norms of a hundred layers
MOST_LINE = 1 << 20  # bytes of one row; a longer line is no row
MOST_WHOLE = 64 << 20  # bytes of run.json, tracks.json and summary.json


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds, read once.

    Attributes:
        folder: The run folder.
        info: `run.json` without its parameters; None where it is missing.
        tracks_info: `tracks.json` without its parameters and tracks; empty where it is missing.
        summary: `summary.json`; empty where it is missing or can't be read.
        parameters: Of `tracks.json` where it has them, else of `run.json`; None where neither does.
        tracks: The statistics of `tracks.json`.
        rows: The rows of `run.jsonl` in the order written.
        nonfinite: The first of them that tells of a value that is not finite.
        broken_lines: Lines of `run.jsonl` that are no rows: the last one is torn where a run was killed.
        notes: What was left out, a sentence each without a full stop.
    """

    folder: Path
    info: Mapping[str, Any] | None = None
    tracks_info: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] | None = None
    tracks: tuple[Track, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()
    nonfinite: NonFinite | None = None
    broken_lines: int = 0
    notes: tuple[str, ...] = ()

    def evidence(self) -> tuple[Parameters, Steps]:
        """The evidence; raises `UserError` where `run.json` is missing or lists no parameters."""
        if self.info is None:
            raise UserError(f"'{self.folder}' is not a run folder: it has no {schema.RUN}.")
        if self.parameters is None:
            raise UserError(
                f"the run folder '{self.folder}' is not as vlmdoctor writes it ({schema.RUN} lists no "
                "parameters); was it written by another version, or changed by hand?"
            )
        known = {**self.info, **self.tracks_info}
        parameters = Parameters(
            parameters=self.parameters,
            adapters=known.get("adapters", False),
            vocab_size=self.info.get("vocab_size"),
            foreign=known.get("foreign", 0),
            unmatched=known.get("unmatched", ()),
        )
        return parameters, self._steps(self.info)

    def _steps(self, info: Mapping[str, Any]) -> Steps:
        steps: dict[int, dict[str, Any]] = {}
        evaluations, finished, last = {}, False, None
        withdrawn: list[Withdrawn] = []
        for row in self.rows:
            match row["event"]:
                case "step":
                    # A row of a step repeated after a resume comes later and wins, column by column.
                    steps[row["step"]] = {**steps.get(row["step"], {}), **row}
                    finished = False
                case "evaluate":
                    evaluations[row["step"]] = schema.evaluation_of(row)
                case "end":
                    finished = row.get("finished") is True
                    last = row["step"] if isinstance(row.get("step"), int) else None
                case "withdrawn":
                    withdrawn.append(schema.withdrawn_of(row))
        return Steps(
            steps=tuple(schema.step_of_row(steps[step]) for step in sorted(steps)),
            tracks=self.tracks,
            evaluations=tuple(evaluations[step] for step in sorted(evaluations)),
            nonfinite=self.nonfinite,
            planned_steps=info.get("total_steps"),
            finished=finished,
            resumed=info.get("resumed"),
            accumulates_without_reset=self.tracks_info.get("accumulates_without_reset"),
            required_accuracy=info.get("required_accuracy"),
            withdrawn=tuple(withdrawn),
            last_made=last,
        )


def read_files(folder: str | os.PathLike[str]) -> RunFiles:
    """Reads a run folder, whether its run has ended, goes on or was killed.

    Raises:
        UserError: There is no recorded run in it, or one of its files can't be read.
    """
    path = Path(folder)
    if not boundary.is_dir(path):
        raise UserError(f"there is no run folder '{folder}'; give the folder that the run was recorded to.")
    if not boundary.exists(path / schema.ROWS):
        raise UserError(
            f"{folder} holds no recorded run (no {schema.ROWS} in it); "
            "give the --out folder of a watched run."
        )
    left_out = LeftOut()
    info, tracks = _read_whole(path / schema.RUN), _read_whole(path / schema.TRACKS) or {}
    # Parameters may be unfrozen and learning rates warmed up after the start: the newer list wins.
    listed = tracks.get("parameters") or (info or {}).get("parameters")
    parameters = _all(schema.parameter_of, listed, "a parameter", left_out)
    summary, notes = _summary(path / schema.SUMMARY)
    rows, broken = _rows(path / schema.ROWS, left_out)
    return RunFiles(
        folder=path,
        info=None if info is None else _others(info, schema.RUN, left_out),
        tracks_info=_others(tracks, schema.TRACKS, left_out),
        summary=summary,
        parameters=None if listed is None else parameters,
        tracks=_all(schema.track_of, tracks.get("tracks"), f"a track in {schema.TRACKS}", left_out),
        rows=rows,
        nonfinite=_nonfinite(rows, left_out),
        broken_lines=broken,
        notes=(*notes, *filter(None, [left_out.sentence(folder)])),
    )


def read_run(folder: str | os.PathLike[str]) -> tuple[Parameters, Steps]:
    """The evidence in a run folder; raises `UserError` where there is no readable run in it."""
    return read_files(folder).evidence()


def read_rows(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of `run.jsonl` in the order written; a line torn by a kill is passed over."""
    return [dict(row) for row in read_files(folder).rows]


def frame(folder: str | os.PathLike[str]) -> pandas.DataFrame:
    """All rows as a DataFrame, one row for each event and one column for each field."""
    import pandas

    return pandas.DataFrame(read_rows(folder))


def _rows(path: Path, left_out: LeftOut) -> tuple[tuple[dict[str, Any], ...], int]:
    """The rows, and how many lines are none."""
    rows, broken = [], 0
    with boundary.open_regular(path, MOST_ROWS) as file:
        try:
            for number, line in enumerate(_lines(file), 1):
                row = _row(line)
                if row is None:
                    broken += 1
                elif (kept := schema.typed_row(row, f"line {number} of {schema.ROWS}", left_out)) is not None:
                    rows.append(kept)
        except OSError as error:
            raise UserError(f"{path} can't be read: {boundary.reason(error)}.") from error
    return tuple(rows), broken


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines that are not empty; of a line longer than MOST_LINE only its beginning, which is no row."""
    while line := file.readline(MOST_LINE):
        whole = line
        while len(line) == MOST_LINE and not line.endswith(b"\n"):
            line = file.readline(MOST_LINE)
        if whole.strip():
            yield whole


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = boundary.parse_json(line.decode("utf-8", errors="replace"), "a row")
    except UserError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("event"), str) else None


def _nonfinite(rows: Iterable[Mapping[str, Any]], left_out: LeftOut) -> NonFinite | None:
    for row in rows:
        if row["event"] == "nonfinite":
            found = schema.nonfinite_of_row(row, f"the row 'nonfinite' of {schema.ROWS}", left_out)
            if found is not None:
                return found
    return None


def _all(made: Callable[..., T | None], entries: object, place: str, left_out: LeftOut) -> tuple[T, ...]:
    """What `made` makes of each entry of a list, without those that are none."""
    if not isinstance(entries, list | None):
        left_out.add(f"the list of {place}")
    found = [made(entry, place, left_out) for entry in (entries if isinstance(entries, list) else ())]
    return tuple(each for each in found if each is not None)


def _others(content: Mapping[str, Any], name: str, left_out: LeftOut) -> dict[str, Any]:
    """What a file holds beside its lists of parameters and tracks."""
    others = {key: value for key, value in content.items() if key not in ("parameters", "tracks")}
    return chosen(schema.INFO_TYPES, others, name, left_out)


def _summary(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The summary, which is made again from the other files: one that can't be read is noted."""
    try:
        return _read_whole(path) or {}, []
    except UserError as error:
        return {}, [str(error).rstrip(".")]


def _read_whole(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where the file is missing."""
    if not boundary.exists(path) and not path.is_symlink():
        return None
    content = boundary.read_json(path, MOST_WHOLE)
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is not as vlmdoctor writes it: it holds no JSON object.")
    return content
