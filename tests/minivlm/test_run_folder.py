"""A run folder has one run at a time, and whatever happens to it ends in one sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Recorder, small

from minivlm import checkpoint
from minivlm.errors import UserError
from minivlm.lock import LOCK, FolderInUse, FolderLock
from minivlm.resume import load_state
from minivlm.signals import StopSignals
from minivlm.train import train

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
FEW = ("--steps", "3", "--batch-size", "2", "--eval-samples", "6", "--threads", "1", "--device", "cpu")

HOLDER = """
import os, sys, time
from pathlib import Path
from minivlm.lock import FolderLock

lock = FolderLock.take(Path(sys.argv[1]))
if os.fork() == 0:  # as a data loader's process does, it lives a little longer
    os.close(1)
    time.sleep(3)
    os._exit(0)
print("has it", flush=True)
time.sleep(60)
"""

# A run that does something to itself in its second step.
ACTS = """
import os, shutil, signal, sys
command, out, act = sys.argv[1:4]
if command == "minivlm":
    from minivlm.callbacks import ConsoleCallback as Seen
    from minivlm.cli import run
else:
    from vlmdoctor.cli.main import run
    from vlmdoctor.live.session import Session as Seen
said = Seen.on_log

def on_log(self, run, record):
    said(self, run, record)
    if record["step"] == 1:
        if act == "remove":
            shutil.rmtree(out)
        else:
            for number in act.split(","):
                os.kill(os.getpid(), int(number))

Seen.on_log = on_log
sys.argv[1:] = ["train", *sys.argv[4:], "--out", out, "--log-every", "1", "--save-every", "1"]
run()
"""


def acting(command: str, out: Path, act: str) -> subprocess.CompletedProcess[str]:
    more = ("--no-preflight",) if command == "vlmdoctor" else ()
    return subprocess.run(
        [sys.executable, "-c", ACTS, command, str(out), act, *FEW, *more],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
        timeout=120,
    )


def sentences(ended: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in ended.stderr, ended.stderr
    return [line for line in ended.stderr.splitlines() if line.startswith(("minivlm: ", "vlmdoctor: "))]


def run(out: Path, **settings: Any) -> Recorder:
    recorder = Recorder()
    train(small(out, **settings), [recorder])
    return recorder


def test_a_second_process_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"has it\n"
        for settings in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(UserError, match=rf"going on in .*run already \(process {holder.pid}\)"):
                train(small(tmp_path / "run", **settings))
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    FolderLock.take(tmp_path / "run").release()


def test_a_folder_in_use_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    lock = FolderLock.take(tmp_path)
    try:
        ended = acting("vlmdoctor", tmp_path, "remove")
        assert ended.returncode == 2 and ended.stdout == ""
        (said,) = sentences(ended)
        assert f"a run is going on in {tmp_path} already (process {os.getpid()})" in said
    finally:
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_within_a_process_a_lock_is_joined_only_by_those_who_ask(tmp_path: Path) -> None:
    lock = FolderLock.take(tmp_path / "run")
    with pytest.raises(FolderInUse, match="this process"):
        FolderLock.take(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    again = FolderLock.take(tmp_path / "link", join=True)
    assert again is lock
    lock.release()
    with pytest.raises(FolderInUse):
        FolderLock.take(tmp_path / "run")
    again.release()
    again.release()
    FolderLock.take(tmp_path / "run").release(unused=True)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_that_is_refused_leaves_no_folder_and_no_lock(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        train(small(tmp_path / "some" / "run", trainable="nothing"))
    assert list(tmp_path.iterdir()) == []
    run(tmp_path / "run", steps=1)
    assert not (tmp_path / "run" / LOCK).exists()


def test_two_runs_without_a_folder_of_their_own_take_different_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minivlm import run_folder

    monkeypatch.chdir(tmp_path)
    free = run_folder._default_folder
    taken: list[FolderLock] = []

    def raced(config: Any) -> Path:
        out = free(config)
        if not taken:
            taken.append(FolderLock.take(out))  # another run is quicker
        return out

    monkeypatch.setattr(run_folder, "_default_folder", raced)
    recorder = Recorder()
    train(dataclasses.replace(small(tmp_path, steps=1), out=None), [recorder])
    taken[0].release()
    assert recorder.run.out == Path("runs/tiny-digits-2")


def test_a_folder_that_is_removed_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    ended = acting("vlmdoctor", tmp_path / "run", "remove")
    assert ended.returncode == 2
    (said,) = sentences(ended)
    assert f"the run folder {tmp_path / 'run'} was removed or renamed while the run was going" in said
    assert "recording" not in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("command", "act", "status"), [("vlmdoctor", "2,2", 130), ("minivlm", "15,15", 143)])
def test_a_second_signal_ends_a_run_at_once_and_with_words(
    tmp_path: Path, command: str, act: str, status: int
) -> None:
    ended = acting(command, tmp_path / "run", act)
    assert ended.returncode == status
    (said,) = [said for said in sentences(ended) if "stopped" in said]
    before, _, pasted = said.partition("after 1: ")
    assert before == f"{command}: stopped at once after 2 of 3 steps; to go on from the checkpoint "
    assert pasted.endswith(f"{command} train --resume {tmp_path / 'run'}")
    left = [
        path.name for path in (tmp_path / "run").rglob("*") if "part" in path.name or "unfin" in path.name
    ]
    assert left == [] and not (tmp_path / "run" / LOCK).exists()


def test_a_signal_before_the_first_step_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minivlm.signals import Interrupted

    def slow(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("minivlm.train.prepare", slow)
    with pytest.raises(Interrupted, match="stopped before the first step; nothing was trained") as caught:
        train(small(tmp_path))
    assert caught.value.exit_status == 143
    assert not isinstance(signal.getsignal(signal.SIGTERM), StopSignals)


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    run(tmp_path, steps=2, save_every=1)
    for name in (".unfinished-summary.json", ".unfinished-checkpoint", ".writable-77"):
        (tmp_path / name).write_text("half")
    half = tmp_path / "checkpoints" / ".unfinished-step-000003"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    run(tmp_path, resume=True, steps=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "checkpoints", "summary.json"]
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step-000002", "step-000003"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_an_interrupted_checkpoint_leaves_nothing_behind(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_checkpoint(tmp_path, 3, write, 2)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A run of three steps with a checkpoint after the first and the third."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    recorder = run(folder, steps=3, save_every=2, keep_last=3)
    return folder, recorder


def rewritten(newest: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the training state, and the manifest with it: well-formed, and wrong."""
    state = torch.load(newest / checkpoint.STATE, weights_only=True)
    changed = change(state)
    torch.save(state if changed is None else changed, newest / checkpoint.STATE)
    (newest / checkpoint.MANIFEST).unlink()
    checkpoint._write_manifest(newest)


def other_shapes(state: dict[str, Any]) -> None:
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"] = torch.zeros(3, 5)


def no_moments(state: dict[str, Any]) -> None:
    state["optimizer"]["state"] = {number: {} for number in state["optimizer"]["state"]}


def sgd(state: dict[str, Any]) -> None:
    model = torch.nn.Linear(2, 2)
    state["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).state_dict()


def other_groups(state: dict[str, Any]) -> None:
    for group in state["optimizer"]["param_groups"]:
        group["betas"] = (0.1, "x")


def more_state(state: dict[str, Any]) -> None:
    state["optimizer"]["state"]["another"] = {"step": 1}


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda state: [1, 2],
    "empty": lambda state: {},
    "a negative step": lambda state: state.update(step=-1),
    "a step past the end": lambda state: state.update(step=10**9),
    "a step as text": lambda state: state.update(step="3"),
    "infinite seconds": lambda state: state.update(seconds=float("inf")),
    "no random states": lambda state: state.update(random=[]),
    "wrong random states": lambda state: state.update(random=[{"python": 1}]),
    "no settings": lambda state: state.update(config=None),
    "settings of wrong types": lambda state: state["config"].update(batch_size="many"),
    "settings out of range": lambda state: state["config"].update(batch_size=-4),
    "an unknown preset": lambda state: state["config"].update(preset="gigantic"),
    "no optimizer": lambda state: state.update(optimizer={}),
    "moments of other shapes": other_shapes,
    "no moments": no_moments,
    "another kind of optimizer": sgd,
    "groups of other settings": other_groups,
    "moments of something else": more_state,
    "a model's state that does not fit": lambda state: state.update(model={"x": torch.ones(2)}),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_state_falls_back_to_the_checkpoint_before(
    tmp_path: Path, trained: tuple[Path, Recorder], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, whole = trained
    shutil.copytree(folder, tmp_path / "run", symlinks=True)
    newest = checkpoint.checkpoints(tmp_path / "run")[-1]
    rewritten(newest, WRONG[what])
    checkpoint.verify(newest)  # it is well-formed
    again = run(tmp_path / "run", steps=3, resume=True, save_every=2, keep_last=3)
    (said,) = caplog.messages
    assert said.startswith(f"checkpoint {newest} is broken (training_state.pt ")
    assert said.endswith("; trying the one before.")
    assert again.losses == whole.losses[2:]


def test_a_wrong_checkpoint_that_was_named_is_one_sentence(
    tmp_path: Path, trained: tuple[Path, Recorder]
) -> None:
    shutil.copytree(trained[0], tmp_path / "run", symlinks=True)
    newest = checkpoint.checkpoints(tmp_path / "run")[-1]
    rewritten(newest, no_moments)
    with pytest.raises(
        UserError, match=r"checkpoint .*step-000003 is broken \(training_state.pt is the state"
    ):
        train(small(newest, resume=True, steps=3))


def test_an_untouched_state_is_read(trained: tuple[Path, Recorder]) -> None:
    assert [load_state(path)["step"] for path in checkpoint.checkpoints(trained[0])] == [2, 3]


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "link", "folder/../../outside", "a\0b"])
def test_a_manifest_lists_files_of_its_own_folder_only(
    tmp_path: Path, trained: tuple[Path, Recorder], name: str
) -> None:
    newest = tmp_path / "step-000003"
    shutil.copytree(checkpoint.checkpoints(trained[0])[-1], newest)
    (tmp_path / "outside").write_text("x")
    (newest / "folder").mkdir()
    (newest / "link").symlink_to(tmp_path / "outside")
    manifest = json.loads((newest / checkpoint.MANIFEST).read_text())
    manifest[name] = {"bytes": 1, "sha256": checkpoint._hash(tmp_path / "outside")}
    (newest / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.BrokenCheckpoint, match=r"outside of the checkpoint|can't be read"):
        checkpoint.verify(newest)


@pytest.mark.parametrize("text", ["{}", "[]", "[" * 100_000, '{"config.json": 3, "training_state.pt": 3}'])
def test_a_manifest_that_is_none_makes_a_broken_checkpoint(tmp_path: Path, text: str) -> None:
    (tmp_path / checkpoint.MANIFEST).write_text(text)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(checkpoint.BrokenCheckpoint):
        checkpoint.verify(tmp_path)
