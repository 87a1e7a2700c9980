"""An id of the Hub where a folder is expected: the sentence has the line that downloads its configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmdoctor.errors import UserError
from vlmdoctor.targets.resolve import resolve

ID = "llava-hf/llava-1.5-7b-hf"
LINE = f"hf download {ID} config.json --local-dir llava-1.5-7b-hf"


@pytest.mark.parametrize(
    "text",
    [
        ID,
        f"{ID}@main",
        f"hf.co/{ID}",
        f"https://huggingface.co/{ID}",
        f"https://huggingface.co/{ID}/tree/main?x=1#y",
        f"HTTPS://www.huggingface.co/{ID}/",
    ],
)
def test_the_line_that_downloads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no folder") as error:
        resolve(text)
    assert f"'{LINE}'" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["runs/first", "./a/b", "a/b/c", "/a/b", "a/", "~/b", "a b/c", "a/b.py", "a/b:build", "nothing"]
)
def test_what_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "runs").mkdir()  # a mistyped path below a folder that is there
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        resolve(text)
    assert "hf download" not in str(error.value)


@pytest.mark.parametrize("options", [(), ("--gpu", "4090")])
def test_on_the_command_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "vlmdoctor", "check", ID, *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and LINE in result.stderr
