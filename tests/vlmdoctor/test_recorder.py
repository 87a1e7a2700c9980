"""The run folder: what is written, what survives, what is read back."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from watched import Model, adamw, run

from vlmdoctor.errors import UserError
from vlmdoctor.runs.reader import frame, read_run
from vlmdoctor.runs.writer import Recorder
from vlmdoctor.watching.watcher import Watcher


def recorded(folder: Path, steps: int = 12, **options) -> Watcher:
    """A recorded run whose loop logs every step."""
    model = Model()
    optimizer = adamw(model)

    def tell(step: int, loss: float) -> None:
        number = step + options.get("first_step", 0)
        watcher.log(step=number, loss=loss, epoch=1, tokens_per_s=10.0, grad_norm=1.0, note="fine")

    with Watcher(model, optimizer, out=folder, on_error="raise", **options) as watcher:
        run(model, optimizer, steps, after=tell)
        watcher.evaluated({"step": watcher.steps - 1, "accuracy": 0.5, "samples": 4, "accuracy/left": 0.25})
    return watcher


def test_what_is_read_back_equals_what_was_seen(tmp_path):
    watcher = recorded(tmp_path, total_steps=12, resumed=False, trainable="vision_proj")
    parameters, steps = watcher.evidence()
    assert read_run(tmp_path) == (parameters, steps)
    assert steps.finished and len(steps.steps) == 12 and len(steps.sampled) == 6
    assert any(p.wanted for p in parameters.parameters)


def test_rows_are_flat_and_one_for_each_step(tmp_path):
    recorded(tmp_path)
    rows = pandas.read_json(tmp_path / "run.jsonl", lines=True)
    steps = rows[rows.event == "step"]
    assert steps.step.tolist() == list(range(12))
    sampled = steps[steps.grad_norm.notna()]
    assert sampled.step.tolist() == [0, 1, 2, 3, 4, 10]
    for column in ("grad_norm/vision", "update_ratio/head", "grad_norm/layer/layers.1", "grad_norm_after"):
        assert sampled[column].notna().all()
    assert steps.loss.notna().all() and steps.tokens_per_s.eq(10).all() and steps.note.eq("fine").all()
    assert rows.event.iloc[-1] == "end" and rows.finished.iloc[-1]
    pandas.testing.assert_frame_equal(frame(tmp_path)[["event", "step"]], rows[["event", "step"]])
    info = json.loads((tmp_path / "run.json").read_text())
    assert (
        info["schema_version"] == 1
        and info["target"] == "Model"
        and info["parameters"][0]["role"] == "vision"
    )


def test_unlogged_runs_record_their_sampled_steps(tmp_path):
    model = Model()
    optimizer = adamw(model)
    with Watcher(model, optimizer, out=tmp_path, on_error="raise", total_steps=99) as watcher:
        run(model, optimizer, 21)
    _, steps = read_run(tmp_path)
    assert [step.step for step in steps.steps] == [0, 1, 2, 3, 4, 10, 20]
    assert steps.steps[0].loss == watcher.evidence()[1].steps[0].loss
    assert not steps.finished and steps.planned_steps == 99


def test_a_torn_line_and_nonsense_are_passed_over(tmp_path):
    watcher = recorded(tmp_path)
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write('\n[1, 2]\n{"event": "step", "step": 13, "lo')
    assert read_run(tmp_path)[1].steps == watcher.evidence()[1].steps


def test_a_resumed_run_appends_and_its_rows_win(tmp_path):
    recorded(tmp_path, total_steps=30)
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 12, "lo')  # torn by a kill
    second = recorded(tmp_path, steps=10, first_step=8, resumed=True, total_steps=18)
    _, steps = read_run(tmp_path)
    assert [step.step for step in steps.steps] == list(range(18))
    assert steps.steps[8:] == second.evidence()[1].steps
    assert steps.resumed and steps.finished
    assert len(steps.evaluations) == 2


def test_another_run_in_the_same_folder_overwrites_nothing(tmp_path):
    recorded(tmp_path, steps=3)
    first = (tmp_path / "run.jsonl").read_text()
    recorded(tmp_path, steps=4)
    assert (tmp_path / "run-1.jsonl").read_text() == first
    assert len(read_run(tmp_path)[1].steps) == 4


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from watched import Model, adamw, run
from vlmdoctor.watching.watcher import Watcher
model = Model()
optimizer = adamw(model)
watcher = Watcher(model, optimizer, every=1, out={folder!r}, on_error="raise")
def tell(step, loss):
    watcher.log(step=step, loss=loss)
    print(step, flush=True)
run(model, optimizer, 10_000, after=tell)
"""


def test_everything_logged_survives_a_kill(tmp_path):
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        seen = [int(process.stdout.readline()) for _ in range(30)][-1]
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    parameters, steps = read_run(tmp_path)
    assert [step.step for step in steps.steps][: seen + 1] == list(range(seen + 1))
    assert not steps.finished and parameters.parameters and steps.tracks
    assert all(step.grad_norm is not None for step in steps.sampled)


def test_nonfinite_numbers_and_findings_have_rows(tmp_path):
    model = Model()
    optimizer = adamw(model)
    with Watcher(model, optimizer, out=tmp_path, on_error="raise", trainable="nowhere") as watcher:
        watcher.log(step=0, loss=float("nan"))
    rows = frame(tmp_path)
    assert math.isnan(rows[rows.event == "step"].loss.iloc[0])
    finding = rows[rows.event == "finding"].set_index("rule").loc["pattern-matches-nothing"]
    assert finding.severity and finding.message and "nowhere" in finding.to_json()
    assert read_run(tmp_path)[1].nonfinite == watcher.evidence()[1].nonfinite
    assert pandas.read_json(tmp_path / "run.jsonl", lines=True).shape == rows.shape


def test_an_exception_is_recorded(tmp_path):
    with pytest.raises(RuntimeError), Watcher(Model(), out=tmp_path, on_error="raise"):
        raise RuntimeError("out of luck")
    last = frame(tmp_path).iloc[-1]
    assert (last.event, last.finished, last.error) == ("end", False, "RuntimeError: out of luck")


class FullDisk:
    """A file on a disk that fills up."""

    closed = False

    def write(self, text: str) -> None:
        raise OSError(28, "No space left on device")

    flush = close = lambda self: None


def test_a_full_disk_is_said_once_and_the_training_goes_on(tmp_path, caplog):
    model = Model()
    optimizer = adamw(model)
    with Watcher(model, optimizer, every=1, out=tmp_path, on_error="raise") as watcher:
        run(model, optimizer, 2)
        watcher._journal._recorder._rows.close()
        watcher._journal._recorder._rows = FullDisk()
        run(model, optimizer, 5)
    assert len(watcher.evidence()[1].steps) == 7
    messages = [record.message for record in caplog.records]
    assert len(messages) == 1 and "No space left on device" in messages[0] and "goes on" in messages[0]


def test_bad_folders_are_told_in_one_sentence(tmp_path):
    def refused(folder: Path) -> str:
        with pytest.raises(UserError) as caught:
            read_run(folder)
        return str(caught.value)

    assert "no run folder" in refused(tmp_path / "missing")
    assert "run.json" in refused(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert "no JSON" in refused(tmp_path) or "run.jsonl" in refused(tmp_path)
    (tmp_path / "run.json").write_text('{"parameters": []}')
    assert "run.jsonl" in refused(tmp_path)
    (tmp_path / "run.jsonl").write_text('{"event": "step"}\n')
    (tmp_path / "run.json").write_text("{}")
    assert "lists no parameters" in refused(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    assert "no JSON object" in refused(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        Recorder(tmp_path / "file" / "run")


def test_a_run_is_read_without_torch(tmp_path):
    recorded(tmp_path, steps=2)
    code = (
        "import sys\nfrom vlmdoctor.runs.reader import read_run\n"
        f"read_run({str(tmp_path)!r})\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
