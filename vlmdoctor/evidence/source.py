"""Where the project's own files set variables that decide which GPUs are seen."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlmdoctor.errors import Unavailable, UserError

DEPTH = "static"

PYTHON = {".py", ".pyw"}
NOTEBOOKS = {".ipynb"}
SHELL = {".sh", ".bash", ".zsh", ".sbatch", ".slurm", ".pbs", ".env"}
KINDS_IN_WORDS = "Python file, notebook, shell script, Dockerfile or .env file"
SKIPPED_FOLDERS = {".git", ".hg", ".svn", "node_modules", "site-packages", "__pycache__", ".tox", ".nox"}
LARGEST = 20_000_000


@dataclass(frozen=True)
class Setting:
    """A place that sets an environment variable.

    Attributes:
        file: The file, as it was named or found.
        line: The line in the file, or in the cell of a notebook; counted from 1.
        name: The variable.
        value: What it is set to; None where that is not a constant.
        code: The text of the line.
        cell: The cell of a notebook, counted from 1.
        condition: The condition or the uncalled function that it stands under; None where it always runs.
        undone: Whether a later line of the file sets or removes the variable again.
        trains: Whether the file trains: it takes optimizer steps, uses a trainer, or launches training.
        uses_torch: Whether the file uses torch or a library on top of it.
        in_tests: Whether the file belongs to tests.
    """

    file: str
    line: int
    name: str
    value: str | None
    code: str
    cell: int | None = None
    condition: str | None = None
    undone: bool = False
    trains: bool = False
    uses_torch: bool = False
    in_tests: bool = False


@dataclass(frozen=True)
class Source:
    """What was found in the files.

    Attributes:
        files: How many were read.
        settings: Where they set GPU variables.
        unread: (file, reason) of those that could not be read.
    """

    files: int
    settings: tuple[Setting, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()


def probe(subject: object, gather: Callable[[type], object]) -> Source:
    """There is no telling which files belong to a model in memory."""
    raise Unavailable("no source files were given")


def scan(paths: Iterable[Path]) -> Source:
    """Reads files, and what is in folders but version control, environments and installed packages.

    Raises:
        UserError: A path does not exist, is of a kind that can't be read, or holds no file that can.
    """
    settings: list[Setting] = []
    unread: list[tuple[str, str]] = []
    count = 0
    for path in paths:
        before = count
        for file in _files(path):
            count += 1
            try:
                settings += _settings_in(file)
            except Unavailable as reason:
                unread.append((str(file), str(reason)))
        if count == before:
            raise UserError(
                f"{path} holds no Python file, notebook, shell script, Dockerfile or .env file to read."
            )
    return Source(count, tuple(settings), tuple(unread))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from _walk(path)
    elif not path.exists():
        raise UserError(f"there is no file or folder {path}.")
    elif kind_of(path) is None:
        raise UserError(f"{path} is of no kind that is read here; give a {KINDS_IN_WORDS}, or a folder.")
    else:
        yield path


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if name not in SKIPPED_FOLDERS and not (here / name / "pyvenv.cfg").is_file()
        )
        for name in sorted(names):
            file = here / name
            if kind_of(file) is not None and file.is_file():
                yield file


def kind_of(path: Path) -> str | None:
    """`python`, `notebook`, `shell` or `docker` by the file's name; None for any other."""
    name = path.name.lower()
    if path.suffix in PYTHON:
        return "python"
    if path.suffix in NOTEBOOKS:
        return "notebook"
    if name.startswith("dockerfile") or name.endswith((".dockerfile", "containerfile")):
        return "docker"
    if path.suffix in SHELL or name == ".env" or name.startswith(".env."):
        return "shell"
    return None


def _settings_in(file: Path) -> list[Setting]:
    from vlmdoctor.evidence import source_python, source_shell
    from vlmdoctor.evidence.environment import VARIABLES

    try:
        if file.stat().st_size > LARGEST:
            raise Unavailable(f"larger than {LARGEST // 1_000_000} MB")
        data = file.read_bytes()
    except OSError as error:
        raise Unavailable(error.strerror or "can't be read") from None
    # Most files have nothing to do with it; looking for the names first saves parsing them.
    if not any(name.encode() in data for name in VARIABLES):
        return []
    text = data.decode("utf-8", errors="replace")
    reader = {
        "python": source_python.settings_in_python,
        "notebook": source_python.settings_in_notebook,
        "shell": source_shell.settings_in_shell,
        "docker": source_shell.settings_in_dockerfile,
    }[kind_of(file) or "python"]
    return list(reader(str(file), text))


_TESTS = re.compile(r"(^|/)(tests?|testing)(/|$)|(^|/)(test_[^/]*|[^/]*_test|conftest)\.\w+$")


def is_test(file: str) -> bool:
    """Whether a file belongs to tests, by its name or folder."""
    return bool(_TESTS.search(file.replace(os.sep, "/")))
