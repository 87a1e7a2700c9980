"""Checkpoints are whole or not there, and a run continues from them as if it had never stopped."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Recorder, small
from safetensors import SafetensorError

from minivlm import checkpoint
from minivlm.errors import UserError
from minivlm.factory import no_progress_bars
from minivlm.run import Run
from minivlm.signals import Interrupted
from minivlm.train import train

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runs import Recorder, small
from minivlm.train import train

class Killed(Recorder):
    def on_log(self, run, record):
        if record["step"] == 7:
            os.kill(os.getpid(), signal.SIGKILL)

train(small(Path(sys.argv[2]), steps=12, save_every=3, accumulate=2), [Killed()])
"""


def run(out: Path, **settings: Any) -> Recorder:
    recorder = Recorder()
    train(small(out, **settings), [recorder])
    return recorder


def weights(recorder: Recorder) -> dict[str, torch.Tensor]:
    return recorder.run.model.state_dict()


def same_weights(one: Recorder, other: Recorder) -> bool:
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_after_kill_9_a_run_goes_on_with_the_very_same_losses(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", steps=12, save_every=3, accumulate=2)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "killed")], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "killed")] == [
        "step-000003",
        "step-000006",
    ]

    # Only --resume and the folder are given: everything else is in the checkpoint.
    from minivlm.train_config import TrainConfig

    resumed = Recorder()
    train(TrainConfig(out=str(tmp_path / "killed"), resume=True), [resumed])
    assert resumed.run.resumed and resumed.run.first_step == 6
    assert resumed.losses == whole.losses[6:]
    assert [r["grad_norm"] for r in resumed.records] == [r["grad_norm"] for r in whole.records[6:]]
    assert [r["tokens"] for r in resumed.records] == [r["tokens"] for r in whole.records[6:]]
    assert same_weights(resumed, whole)
    assert resumed.evaluations[-1] == whole.evaluations[-1]


@pytest.mark.parametrize(
    "settings",
    [
        {"stage": "clip", "data": "emoji", "batch_size": 8},
        {"lora_rank": 2},
        {"stage": "align"},
        {"set": (*small(Path()).set, "attention_dropout=0.2")},
    ],
    ids=["clip", "lora", "align", "dropout"],
)
def test_every_kind_of_run_resumes_exactly(tmp_path: Path, settings: dict[str, Any]) -> None:
    if "lora_rank" in settings:
        pytest.importorskip("peft")
    whole = run(tmp_path / "whole", **settings)
    run(tmp_path / "parts", max_steps=3, **settings)
    rest = run(tmp_path / "parts", resume=True, steps=6, **settings)
    assert rest.losses == whole.losses[3:]
    assert same_weights(rest, whole)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path, save_every=1, keep_last=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000005", "step-000006"]
    assert (tmp_path / "checkpoint").resolve().name == "step-000006"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000005",
        "step-000006",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt"])
def test_a_broken_newest_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(tmp_path, save_every=2)
    newest = checkpoint.checkpoints(tmp_path)[-1]
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1  # one bit, in the middle of the numbers
    (newest / name).write_bytes(content)

    again = run(tmp_path, resume=True)
    assert f"checkpoint {newest} is broken ({name} was changed or damaged" in caplog.text
    assert again.losses == whole.losses[4:]
    assert same_weights(again, whole)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["set-aside-1-step-000006", "step-000004", "step-000006"]


def test_when_all_are_broken_or_none_is_there_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint to resume in .*empty"):
        train(small(tmp_path / "empty", resume=True))
    run(tmp_path / "run")
    (only,) = checkpoint.checkpoints(tmp_path / "run")
    (only / "training_state.pt").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* is usable; the newest, step-000006, is broken"):
        train(small(tmp_path / "run", resume=True))


def test_a_checkpoint_named_exactly_is_resumed_and_later_ones_set_aside(tmp_path: Path) -> None:
    whole = run(tmp_path, save_every=2, keep_last=3)
    again = run(tmp_path / "checkpoints" / "step-000002", resume=True)
    assert again.losses == whole.losses[2:]
    assert (tmp_path / "checkpoints" / "set-aside-1-step-000004").is_dir()


def test_a_finished_run_is_not_resumed_but_can_be_made_longer(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match="took all of its 6 steps; give --steps N to train it longer"):
        train(small(tmp_path, resume=True, steps=None))
    longer = run(tmp_path, resume=True, steps=8)
    assert [record["step"] for record in longer.records] == [6, 7]


def test_a_folder_with_a_run_is_never_overwritten_unasked(tmp_path: Path) -> None:
    run(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for settings in ({}, {"overwrite": True, "trainable": "nothing"}, {"overwrite": True, "data": "digit"}):
        with pytest.raises(UserError):
            train(small(tmp_path, **settings))
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert run(tmp_path, overwrite=True, steps=2).calls[-1] == "end"
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000002"]


def test_an_unwritable_folder_is_said_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        recorder = Recorder()
        with pytest.raises(UserError, match=r"the run folder .* (is a file|can't be written)"):
            train(small(out), [recorder])
        assert recorder.calls == []


def test_too_little_space_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    recorder = Recorder()
    with pytest.raises(UserError, match="0 MiB free, and the checkpoints of this run need about"):
        train(small(tmp_path), [recorder])
    assert recorder.calls == []


@pytest.mark.parametrize("full_at", ["weights", "state", "rename"])
def test_a_disk_that_fills_up_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    whole = run(tmp_path / "whole", save_every=2)
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FillsUp(Recorder):
        def on_log(self, run: Run, record: Any) -> None:
            super().on_log(run, record)
            if record["step"] != 3:
                return
            places = {
                "weights": (type(run.model), "save_pretrained"),
                "state": (torch, "save"),
                "rename": (Path, "rename"),
            }

            def full(*_: Any, **__: Any) -> None:
                # As safetensors and torch.save put it.
                if full_at == "weights":
                    raise SafetensorError("I/O error: No space left on device (os error 28)")
                if full_at == "state":
                    raise RuntimeError("unexpected pos 693504 vs 693392") from no_space
                raise no_space

            monkeypatch.setattr(*places[full_at], full)

    recorder = FillsUp()
    with pytest.raises(
        UserError, match=r"after 4 steps could not be written .* the disk is full.*step-000002 is whole"
    ):
        train(small(tmp_path / "run", save_every=2), [recorder])
    monkeypatch.undo()
    assert isinstance(recorder.error, UserError)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    rest = run(tmp_path / "run", save_every=2, resume=True)
    assert rest.losses == whole.losses[2:]


def test_a_disk_that_is_full_to_the_last_byte_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Recorder):
        def on_evaluate(self, run: Run, record: Any) -> None:
            def full(*_: Any, **__: Any) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(Path, "write_text", full)

    with pytest.raises(UserError, match=r"summary.json could not be written: the disk is full\."):
        train(small(tmp_path, eval_every=2), [Full()])


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # In the background of a shell Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    whole = run(tmp_path / "whole")

    class Interrupting(Recorder):
        def on_log(self, run: Run, record: Any) -> None:
            super().on_log(run, record)
            if record["step"] == 2:
                os.kill(os.getpid(), signal.SIGINT)

    recorder = Interrupting()
    with pytest.raises(Interrupted, match="stopped after 4 of 6 steps; to go on: minivlm train") as caught:
        train(small(tmp_path / "run"), [recorder])
    assert caught.value.exit_status == 130
    assert recorder.calls[-2:] == ["checkpoint", "exception"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest = run(tmp_path / "run", resume=True)
    assert recorder.losses + rest.losses == whole.losses
    assert same_weights(rest, whole)


def test_a_checkpoint_is_found_by_its_folder_or_its_runs(tmp_path: Path) -> None:
    run(tmp_path, save_every=3)
    newest = tmp_path / "checkpoints" / "step-000006"
    assert checkpoint.find_checkpoint(tmp_path) == checkpoint.find_checkpoint(newest) == newest
    with pytest.raises(UserError, match=r"does not exist; train a model first with: python -m minivlm train"):
        checkpoint.find_checkpoint(tmp_path / "nowhere")


def test_progress_bars_come_back(tmp_path: Path) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    with no_progress_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled() is before
