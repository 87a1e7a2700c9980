"""A run folder that others wrote: one reader, bounds, values by type, and a note for what was left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import recorded_runs as runs

from vlmdoctor.errors import UserError
from vlmdoctor.runs.columns import recording_of
from vlmdoctor.runs.conclusion import judge_run, rules_for_runs
from vlmdoctor.runs.reader import MOST_LINE, read_files
from vlmdoctor.runs.typed import number

WRONG = ("a text", [1], {"a": 1}, True, None, -1, 1e300, 10**290, float("nan"), "--inf", [[[]]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return runs.write_run(tmp_path / "run", steps=20, eval_every=10)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def deep(path: Path) -> None:
    path.write_text('{"a":' * 100_000)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("name", ["run.json", "tracks.json", "run.jsonl"])
@pytest.mark.parametrize("make", [pipe, endless, loop, deep, sparse, Path.mkdir])
def test_a_file_that_is_none_ends_in_a_sentence(folder, name, make) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    if name == "run.jsonl" and make is deep:
        assert read_files(folder).broken_lines == 1
        return
    with pytest.raises(UserError) as caught:
        read_files(folder)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [pipe, endless, loop, deep, sparse, Path.mkdir])
def test_a_summary_that_is_none_is_noted(folder, make) -> None:
    (folder / "summary.json").unlink(missing_ok=True)
    make(folder / "summary.json")
    files = read_files(folder)
    assert files.summary == {} and len(files.notes) == 1 and "summary.json" in files.notes[0]


def test_a_value_of_any_type_in_any_field_crashes_no_rule(folder) -> None:
    """Each field of each file in turn: read, judged and made into columns."""
    rules = rules_for_runs()
    rows = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    rows.append({"event": "nonfinite", "step": 3, "where": "loss", "module": "a", "parameters": ["b"]})
    info = json.loads((folder / "run.json").read_text())
    tracks = {"tracks": [{"name": info["parameters"][0]["name"], "samples": 5, "moved": 5, "still": 0}]}
    events = {row["event"]: row for row in rows}
    places = [(row, key) for row in events.values() for key in row if key != "event"]
    places += [(info, key) for key in info] + [(info["parameters"][0], key) for key in info["parameters"][0]]
    places += [(tracks["tracks"][0], key) for key in tracks["tracks"][0]] + [(tracks, "tracks")]
    for turn, (place, key) in enumerate(places):
        before, place[key] = place[key], WRONG[turn % len(WRONG)]
        (folder / "run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "run.json").write_text(json.dumps(info))
        (folder / "tracks.json").write_text(json.dumps(tracks))
        place[key] = before
        files = read_files(folder)
        recording_of(files)
        try:
            parameters, steps = files.evidence()
        except UserError:
            assert key == "parameters"
            continue
        assert not judge_run(parameters, steps, rules, command="report", target="x").crashed, (key, turn)


def test_what_is_left_out_is_said_once(folder) -> None:
    with (folder / "run.jsonl").open("a") as file:
        file.write('{"event": "step", "step": "20"}\n{"event": "step", "step": 20, "loss": [1], "lr": 0.5}\n')
    files = read_files(folder)
    assert len(files.notes) == 1 and "and 1 more are of another type and left out" in files.notes[0]
    assert files.evidence()[1].steps[-1].lr == 0.5 and files.evidence()[1].steps[-1].loss is None


def test_a_line_without_an_end_takes_no_memory_and_the_next_one_is_read(folder) -> None:
    with (folder / "run.jsonl").open("ab") as file:
        file.write(b"\0" * (3 * MOST_LINE) + b'\n{"event": "step", "step": 20, "loss": 1.5}\n')
    files = read_files(folder)
    assert files.broken_lines == 1 and recording_of(files).last_step == 20


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("-inf", float("-inf")), ("--inf", None), (True, None), ("1", None), (2, 2.0), (10**400, None)],
)
def test_numbers_and_the_words_for_them(value, wanted) -> None:
    assert number(value) == wanted
