"""What the user gave and can't be used is one sentence on standard error and status 2, whatever it is."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_texts import assert_plain

from vlmdoctor import boundary
from vlmdoctor.cli import main
from vlmdoctor.errors import UserError

ROOT = Path(__file__).parents[2]
LONG = "a" * 300
NAMES = {
    "too long": LONG,
    "too long a path": "/".join([LONG] * 20),
    "no UTF-8": "/nowhere/\udcff\udcfe.py",
    "two lines": "a\nb.py",
    "an escape": "\x1b[31mx.py",
    "a NUL": "a\0b.py",
    "a loop": "loop.py",
    "a pipe": "pipe.py",
    "endless": "zero.py",
    "not there": "nope.py",
    "no such home": "~nobody-here/x.py",
    "a command": "::stop-commands::x",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with names in it that lead nowhere."""
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """The command line in this process: status, output, and what was said."""
    out, said = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "argv", ["vlmdoctor", *arguments])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", said)
    with pytest.raises(SystemExit) as ended:
        main.run()
    return int(ended.value.code or 0), out.getvalue(), said.getvalue()


def assert_one_sentence(outcome: tuple[int, str, str]) -> None:
    status, out, said = outcome
    assert status == 2, said
    assert out == "" or out.startswith("["), "a section of the machine may be there already"
    assert said.startswith("vlmdoctor: ") and said.count("\n") == 1, said
    assert_plain(out + said)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("option", [(), ("--from",), ("--select",), ("--require",), ("--output-format",)])
def test_a_name_that_leads_nowhere(folder, monkeypatch, option, name) -> None:
    assert_one_sentence(run(monkeypatch, "check-env", *option, name))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_target_that_leads_nowhere(folder, monkeypatch, name) -> None:
    for arguments in (("check", name), ("check", f"{name}:build"), ("look", name), ("rule", name)):
        if ":build" in arguments[-1] and name in ("loop.py", "pipe.py", "zero.py", "nope.py"):
            assert "there is no file" in run(monkeypatch, *arguments)[2]
        assert_one_sentence(run(monkeypatch, *arguments))


@pytest.mark.parametrize("option", ["--output-file", "--save"])
@pytest.mark.parametrize("name", ["nowhere/x", ".", LONG, "/dev/null/x", "/dev/full", f"a/{LONG}"])
def test_a_report_that_cannot_be_written(folder, monkeypatch, option, name) -> None:
    assert_one_sentence(run(monkeypatch, "check-env", option, name))
    assert sorted(path.name for path in folder.iterdir()) == ["loop.py", "pipe.py", "zero.py"], (
        "nothing half-written is left"
    )


PROJECTS = {
    "thousands of digits": b"fail-on = " + b"9" * 5000,
    "no UTF-8": b"fail-on = '\xff'",
    "nested lists": b"select = " + b"[" * 100_000,
    "nested tables": b"a = " + b"{a=" * 5000,
    "an escape": b'"\\u001b[31m" = 1',
    "a NUL": b"\x00",
    "no such day": b"fail-on = 9999-99-99",
    "two lines": b'fail-on = "a\\nb"',
}


@pytest.mark.parametrize("lines", PROJECTS.values(), ids=PROJECTS)
def test_a_project_file_that_is_none(folder, monkeypatch, lines) -> None:
    (folder / "pyproject.toml").write_bytes(b"[tool.vlmdoctor]\n" + lines)
    assert_one_sentence(run(monkeypatch, "check-env"))
    before = (folder / "pyproject.toml").read_bytes()
    if lines != PROJECTS["two lines"]:
        assert run(monkeypatch, "init", "--dry-run", "nope.py:build")[0] == 2
    assert (folder / "pyproject.toml").read_bytes() == before


def test_a_project_file_that_is_no_file_settles_nothing(folder, monkeypatch) -> None:
    for make in (
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
    ):
        make(folder / "pyproject.toml")
        assert run(monkeypatch, "check-env", "--output-format", "json")[0] in (0, 1)
        (folder / "pyproject.toml").rmdir() if make is Path.mkdir else (folder / "pyproject.toml").unlink()


SNAPSHOTS = {
    "empty": b"",
    "nested": b"[" * 100_000,
    "nested objects": b'{"vlmdoctor_snapshot":' * 100_000,
    "digits": b'{"vlmdoctor_snapshot": ' + b"9" * 6000 + b"}",
    "no UTF-8": b"\xff\xfe\xff",
    "a list": b"[]",
    "nested XML": b"<nvidia_smi_log>" + b"<a>" * 100_000,
    "an escape": b'{"vlmdoctor_snapshot": 1, "python": ["\\u001b"]}',
}


@pytest.mark.parametrize("data", SNAPSHOTS.values(), ids=SNAPSHOTS)
def test_a_snapshot_that_is_none(folder, monkeypatch, data) -> None:
    (folder / "a.json").write_bytes(data)
    assert_one_sentence(run(monkeypatch, "check-env", "--from", "a.json"))


SOURCES = {
    "a.py": b"import os\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\nx = " + b"(" * 100_000,
    "b.py": b"import os\nos.environ['OMP_NUM_THREADS'] = str(0x" + b"f" * 6000 + b")\n",
    "c.py": b"import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '\\ud800\\x1b'\n",
    "d.py": b"import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '\xff\x00'\n",
    "e.py": b"import os\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\nx = " + b"-" * 100_000 + b"1",
    "f.py": b"import os\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\nif a: pass\n" + b"elif a: pass\n" * 3000,
    "a.ipynb": b"[" * 100_000,
    "b.ipynb": b'{"cells": [{"cell_type": ["code"], "source": 5}]}',
    "a.sh": b"export CUDA_VISIBLE_DEVICES='\xff\xfe\x00\x1b\n\"" * 99,
    "Dockerfile": b"ENV CUDA_VISIBLE_DEVICES='\xff\xfe\x00\x1b\n\\\n" * 99,
    "compose.yml": b"CUDA_VISIBLE_DEVICES: " + b"[" * 100_000,
}


def test_sources_of_any_content_are_searched_or_named_as_unread(folder, monkeypatch) -> None:
    for name, data in SOURCES.items():
        (folder / name).write_bytes(data)
    status, out, said = run(monkeypatch, "check-env", ".", "-v")
    assert status in (0, 1) and said == ""
    assert f"{len(SOURCES)} files searched" in out and "a.py: " in out
    assert_plain(out)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_whose_entries_vanish_is_searched(monkeypatch) -> None:
    status, _, said = run(monkeypatch, "check-env", "/proc/self")
    assert status == 2 and "holds no Python file" in said and said.count("\n") == 1


FACTORIES = {
    "text raises": "class E(Exception):\n    def __str__(self): raise self\ndef build(): raise E",
    "text is none": "class E(Exception):\n    def __str__(self): return 5\ndef build(): raise E",
    "ends": "def build(): raise SystemExit(0)",
    "ends oddly": "class C:\n    def __str__(self): raise ValueError\ndef build(): raise SystemExit(C())",
    "generator": "def build(): raise GeneratorExit",
    "interrupts": "class K(KeyboardInterrupt): pass\ndef build(): raise K('x')",
    "cancelled": "import asyncio\ndef build(): raise asyncio.CancelledError",
    "base": "class B(BaseException):\n    def __str__(self): raise B\ndef build(): raise B",
    "import ends": "import sys\nsys.exit(0)",
    "import base": "raise GeneratorExit",
    "escapes": "def build(): raise ValueError('\\x1b[31m\\n::stop-commands::x\\u202e\\ud800')",
    "long": "def build(): raise ValueError('x' * 10**6)",
    "group": "def build(): raise BaseExceptionGroup('g', [KeyboardInterrupt()])",
    "recursion": "def build(): return build()",
    "class raises": "class M:\n    @property\n    def __class__(self): 1 / 0\ndef build(): return M()",
    "type's name": "def build(): return type('\\x1b[31m', (), {})()",
    "attribute raises": "def __getattr__(name): raise ValueError(name)",
    "signature": "class B:\n    __signature__ = 5\n    def __call__(self): return 5\nbuild = B()",
    "NUL": "def build(): pass\0",
    "deep": "x = " + "(" * 100_000,
    "closes": "import sys\nsys.stderr.close()\ndef build(): raise ValueError",
    "no streams": "import sys\nsys.stdout = sys.stderr = None\ndef build(): raise ValueError",
    "pipe": "def build(): raise BrokenPipeError",
    "Typer": "import typer\ndef build(): raise typer.Exit(0)",
    "full": "def build(): raise OSError(28, 'No space left on device')",
}


@pytest.mark.parametrize("code", FACTORIES.values(), ids=FACTORIES)
def test_a_function_that_fails_in_any_way(folder, monkeypatch, code) -> None:
    (folder / "model.py").write_text(code)
    assert_one_sentence(run(monkeypatch, "check", "model.py:build"))


def test_an_interruption_is_no_finding(folder, monkeypatch) -> None:
    (folder / "model.py").write_text("def build(): raise KeyboardInterrupt")
    assert run(monkeypatch, "check", "model.py:build") == (130, "", "vlmdoctor: interrupted.\n")


def shell(line: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    """A line of a shell in which `vlmdoctor` is the command: status, output, and what was said."""
    line = line.replace("vlmdoctor", f"{sys.executable} -m vlmdoctor")
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("vlmdoctor --version >/dev/full", 2),
        ("vlmdoctor --help >/dev/full", 2),
        ("vlmdoctor check-env nope.py 2>/dev/full", 2),
        ("vlmdoctor check-env nope.py 2>&- >&-", 2),
        ("vlmdoctor check-env --nonsense 2>/dev/full", 2),
        ("vlmdoctor --version >&- 2>&-", 0),
        ("vlmdoctor --version 2>/dev/full", 0),
        ("mkdir gone; cd gone; rmdir ../gone; vlmdoctor --help >/dev/null", 0),
        ("mkdir gone; cd gone; rmdir ../gone; vlmdoctor init --dry-run minivlm", 2),
        ("unset HOME; COLUMNS=99999999999 TERM='\033]x' LC_ALL=C vlmdoctor --help >/dev/null", 0),
        ("COLUMNS=-1 TERMINAL_WIDTH=abc vlmdoctor check-env --help >/dev/null", 0),
    ],
)  # fmt: skip
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_streams_and_surroundings_of_any_kind(tmp_path, line, status) -> None:
    outcome = shell(line, tmp_path)
    assert outcome[0] == status, outcome
    assert "Traceback" not in outcome[1] + outcome[2] and "Exception ignored" not in outcome[2]
    assert status == 0 or "2>" in line or outcome[2].startswith("vlmdoctor: "), outcome


@pytest.mark.parametrize("name", ["json", "platform", "rich", "typer", "numpy", "packaging"])
def test_a_file_that_is_called_like_a_module_is_not_taken_for_it(tmp_path, name) -> None:
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('not meant')")
    status, _, said = shell("vlmdoctor check-env nope.py", tmp_path)
    assert status == 2 and said == "vlmdoctor: there is no file or folder nope.py.\n"


def test_a_file_called_torch_on_the_path_is_named(tmp_path) -> None:
    (tmp_path / "torch.py").write_text("x = 1")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    status, _, said = shell("vlmdoctor check minivlm", tmp_path, PYTHONPATH=path)
    assert status == 2 and said.count("\n") == 1, said
    assert "torch.py hides the package 'torch'" in said


def test_files_are_read_with_bounds(folder) -> None:
    (folder / "a").write_bytes(b"x" * 11)
    for path, words in (
        ("a", "has 11 bytes, more than are read"),
        ("pipe.py", "is a named pipe, not a regular file"),
        ("zero.py", "is a device, not a regular file"),
        (".", "is a folder, not a regular file"),
        ("loop.py", "symbolic links"),
        ("a\0b", "no file can have that name"),
        (LONG, "too long"),
    ):
        with pytest.raises(boundary.Unreadable, match=words):
            boundary.read_bytes(path, 10)
        assert not boundary.is_dir(path) or path == "."
        assert boundary.is_file(path) == (path == "a")
    assert boundary.read_bytes("a", 11) == b"x" * 11
    for data, words in (
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "deep"),
        (b"9" * 6000, "digits"),
        (b"{", "JSON"),
    ):
        (folder / "a").write_bytes(data)
        with pytest.raises(UserError, match=words):
            boundary.read_json("a", 1_000_000)
    (folder / "a").write_bytes(b'{"a": 1}')
    assert boundary.read_json(Path("a"), 100) == {"a": 1}


def test_nothing_is_said_to_a_reader_that_has_gone(tmp_path) -> None:
    """Rich ends the program by itself there, which is not the doing of what was examined."""
    line = "vlmdoctor rules 2>said | head -1 >/dev/null; cat said"
    assert shell(line, tmp_path)[1] == ""
