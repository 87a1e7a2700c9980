"""`vlmdoctor check-env` where little works: locales, full disks, deleted folders, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_nvml
import pytest

from vlmdoctor.errors import UserError
from vlmdoctor.output_file import write_whole

COMMAND = [sys.executable, "-m", "vlmdoctor", "check-env"]
SOURCE = str(Path(__file__).parents[2])
HOME = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": SOURCE}


def run(*arguments: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, cwd=cwd, env={**HOME, **environ}, timeout=60
    )


@pytest.mark.parametrize(
    "environ",
    [
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"},
        {},  # neither HOME nor anything else
    ],
)
def test_marks_are_written_whatever_the_locale(environ: dict[str, str]) -> None:
    result = run("--select", "ENV101", **environ)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().startswith("✓ can train ")
    assert "\n[✓] Python and packages" in result.stdout.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="variables are text there")
def test_variables_that_are_no_text() -> None:
    environ = {os.fsencode(name): os.fsencode(value) for name, value in HOME.items()}
    environ |= {b"CUDA_HOME": b"/x\xff", b"LC_ALL": b"C.UTF-8", b"PYTHONIOENCODING": b"utf-8:strict"}
    for arguments in (["-v"], ["--paste"], ["--output-format", "json"]):
        result = subprocess.run([*COMMAND, *arguments], capture_output=True, env=environ, timeout=60)
        assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep a folder that is in use")
def test_the_current_folder_was_deleted(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"import os, runpy, sys; os.rmdir({str(gone)!r}); sys.argv[1:] = ['check-env']\n"
    program += "runpy.run_module('vlmdoctor', run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=gone, env=HOME, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "[✓] Machine" in result.stdout


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
def test_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run([*COMMAND, "-v"], stdout=full, stderr=subprocess.PIPE, env=HOME, timeout=60)
    assert result.returncode == 2
    assert result.stderr.decode().splitlines() == ["vlmdoctor: can't write: No space left on device."]


def test_what_is_no_file_is_never_replaced_by_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "text")
        assert os.read(reader, 10) == b"text"
        assert pipe.is_fifo()
    finally:
        os.close(reader)
    with pytest.raises(UserError, match="can't write"):
        write_whole(tmp_path, "a folder is no file")


def test_an_interrupted_wait_leaves_nobody_behind(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("pynvml")
    driver = str(fake_nvml.build(tmp_path))
    process = subprocess.Popen(
        COMMAND,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**HOME, "PYTHONUNBUFFERED": "1", "LD_LIBRARY_PATH": driver, "FAKE_INIT": "hang"},
        # A shell that runs the tests in the background has Ctrl-C ignored, and children take that over.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    request.addfinalizer(process.kill)
    asked = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 20
    while not (children := asked.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode not in (0, None)
    assert b"Traceback" not in errors
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
