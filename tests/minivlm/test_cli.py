"""`python -m minivlm`: what it prints, and one plain sentence with exit status 2 for what can't be done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from runs import SMALL, small

from minivlm.cli import run
from minivlm.train import train

FEW = (
    *("--steps", "3", "--batch-size", "4", "--eval-samples", "12", "--threads", "1", "--device", "cpu"),
    *(word for item in SMALL for word in ("--set", item)),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(small(out, steps=2))
    return out


def minivlm(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["minivlm", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        run()
    return int(ended.value.code or 0)


def test_train_prints_the_familiar_lines_and_says_where_the_results_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert minivlm(monkeypatch, "train", *FEW) == 0
    output = capsys.readouterr().out
    assert "[Train Epoch 1] step: 0, loss: 6." in output
    assert "[Evaluation] step: 2, accuracy: " in output
    assert "runs/tiny-digits/summary.json" in output
    # A second run gets a folder of its own.
    assert minivlm(monkeypatch, "train", *FEW) == 0
    assert (tmp_path / "runs" / "tiny-digits-2" / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--preset", "tinny"), "did you mean 'tiny'?"),
        (("--data", "digit"), "did you mean digits?"),
        (("--data", "no/such/file.json"), "there is no file or folder no/such/file.json"),
        (("--set", "hidden_sise=4"), "did you mean 'hidden_size'?"),
        (("--set", "hidden_size"), "must be FIELD=VALUE"),
        (("--init-from", "nowhere"), "nowhere does not exist; train a model first"),
        (("--vision-from", "./nowhere"), "there is no folder './nowhere' to take a vision encoder from"),
        (("--device", "gpu"), "auto, cpu, cuda, cuda:1 or mps"),
        (("--device", "cuda:7"), "but torch sees"),
        (("--precision", "fp16", "--device", "cpu"), "--precision fp16 needs a GPU"),
        (("--resume", "nowhere"), "there is no checkpoint to resume in nowhere"),
        (("--batch-size", "0"), "--batch-size is 0; it must be at least 1"),
        (("--out", "/dev/null/run"), "the run folder /dev/null/run can't be written"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert minivlm(monkeypatch, "train", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("minivlm: ") and sentence in error
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("runs/*/checkpoints"))


def test_evaluate_prints_both_accuracies(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert minivlm(monkeypatch, "evaluate", trained, "--samples", "24") == 0
    output = capsys.readouterr().out
    assert "accuracy   shuffled images" in output
    assert "left" in output and "24 questions about unseen images" in output


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16", "1"])
def test_generate_answers_about_any_image_file(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mode: str,
) -> None:
    pixels = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64)
    image = (
        PIL.Image.fromarray(pixels) if mode == "I;16" else PIL.Image.new("RGB", (64, 48), "red").convert(mode)
    )
    file = tmp_path / ("image.tiff" if mode in ("CMYK", "I;16") else "image.png")
    image.save(file)
    status = minivlm(monkeypatch, "generate", trained, "--image", file, "what is this?", "--max-tokens", "3")
    output = capsys.readouterr()
    assert status == 0, output.err
    assert "<|" not in output.out


def test_generate_without_an_image_or_a_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert minivlm(monkeypatch, "generate", trained, "hello", "--max-tokens", "2") == 0
    capsys.readouterr()
    (tmp_path / "text.png").write_text("no image")
    for arguments, sentence in (
        ((trained, "hello", "--image", tmp_path / "missing.png"), "there is no image file"),
        ((trained, "hello", "--image", tmp_path / "text.png"), "can't be read as an image"),
        ((trained, "is <image> red?"), "leave <image> out of the question"),
        ((tmp_path / "nothing", "hello"), "train a model first with: python -m minivlm train"),
    ):
        assert minivlm(monkeypatch, "generate", *arguments) == 2
        assert sentence in capsys.readouterr().err


def test_import_minimind_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert minivlm(monkeypatch, "import-minimind", tmp_path / "weights.pth", tmp_path / "out") == 2
    assert "weights.pth" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_chat_answers_until_an_empty_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    lines = iter(["hello", f"/image {tmp_path / 'image.png'}", "what is this?", "/image nowhere.png", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert minivlm(monkeypatch, "chat", trained, "--max-tokens", "2") == 0
    assert "there is no image file nowhere.png" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert minivlm(monkeypatch, "chat") == 2
    assert "there is no checkpoint under runs/; train a model first" in capsys.readouterr().err


def test_ctrl_c_ends_with_a_sentence_and_130(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from minivlm.callbacks import ConsoleCallback\n"
        "ConsoleCallback.on_log = lambda self, run, record: record['step'] or os.kill(os.getpid(), 2)\n"
        "from minivlm.cli import run\n"
        "run()"
    )
    command = [sys.executable, "-c", code, "train", *FEW, "--out", str(tmp_path / "run"), "--log-every", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    pasted = ended.stderr.partition("stopped after 2 of 3 steps; to go on: ")[2]
    assert f"minivlm train --resume {tmp_path / 'run'}" in pasted
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").exists()
