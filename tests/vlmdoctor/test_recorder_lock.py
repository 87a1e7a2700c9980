"""One recording in a run folder at a time; watching never ends the run for it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from watched import Model, adamw, run

from minivlm.lock import LOCK, FolderLock
from vlmdoctor.runs.writer import Recorder
from vlmdoctor.watching.watcher import Watcher

HOLDER = """
import sys, time
from pathlib import Path
from minivlm.lock import FolderLock

lock = FolderLock.take(Path(sys.argv[1]))
print("has it", flush=True)
time.sleep(60)
"""


def test_where_another_process_records_the_run_goes_on_unrecorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run.jsonl").write_text('{"event": "step", "step": 0}\n')
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"has it\n"
        model = Model()
        optimizer = adamw(model)
        with Watcher(model, optimizer, out=tmp_path, on_error="raise") as watcher:
            run(model, optimizer, 6)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert watcher.evidence()[1].finished and len(watcher.evidence()[1].steps) == 6
    (said,) = caplog.messages
    assert said.startswith(
        f"nothing is recorded: a run is going on in {tmp_path} already (process {holder.pid})"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "run.jsonl"]
    assert (tmp_path / "run.jsonl").read_text() == '{"event": "step", "step": 0}\n'


def test_in_one_process_the_last_recorder_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Recorder(tmp_path)
    first.row("step", {"step": 0})
    second = Recorder(tmp_path)
    first.row("step", {"step": 1})
    first.tracks((), {"from": "first"})
    first.close()
    second.row("step", {"step": 5})
    second.tracks((), {"from": "second"})
    second.close()
    assert caplog.messages == [f"recording to '{tmp_path}' goes on with the watcher that was made last."]
    rows = [json.loads(line)["step"] for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert rows == [5]
    assert json.loads((tmp_path / "tracks.json").read_text())["from"] == "second"
    assert not (tmp_path / LOCK).exists()


def test_beside_a_trainer_of_the_same_process_it_records(tmp_path: Path) -> None:
    lock = FolderLock.take(tmp_path)
    recorder = Recorder(tmp_path)
    recorder.row("step", {"step": 0})
    recorder.close()
    assert (tmp_path / "run.jsonl").read_text() and (tmp_path / LOCK).exists()
    lock.release()


def test_what_was_left_half_written_is_removed_and_nothing_is_left_by_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = ("tracks.json.part", "run.json.part", ".loss.png.part", ".summary.json.ab12", ".report.html.x")
    for name in left:
        (tmp_path / name).write_text("half")
    (tmp_path / "summary.json").write_text("{}")
    recorder = Recorder(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        recorder.start({"target": "x"})
        recorder.tracks((), {})
    assert caplog.messages == [
        f"recording to '{tmp_path}' stopped: No space left on device; the run itself goes on."
    ]
    recorder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.jsonl", "summary.json"]
