"""Which files are read, and what kind they are of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from vlmdoctor import boundary
from vlmdoctor.errors import UserError

PYTHON = {".py", ".pyw"}
NOTEBOOKS = {".ipynb"}
SHELL = {".sh", ".bash", ".zsh", ".sbatch", ".slurm", ".pbs", ".lsf", ".csh", ".fish", ".env"}
KINDS_IN_WORDS = "Python file, notebook, shell script, Dockerfile, compose or .env file"
SKIPPED_FOLDERS = {
    *(".git", ".hg", ".svn", "node_modules", "site-packages", "dist-packages", "__pycache__", ".tox", ".nox"),
    *(".ipynb_checkpoints", ".eggs", "wandb", "mlruns"),
}
NO_FILES = {"/proc", "/sys", "/dev"}  # of the kernel's, and endless
MOST_FILES = 20_000
_COMPOSE = re.compile(r"(docker-)?compose([.-][\w.-]*)?\.ya?ml")


def files_in(path: Path) -> Iterator[Path]:
    if boundary.is_dir(path):
        yield from _walk(path)
    elif not boundary.exists(path):
        raise UserError(f"there is no file or folder {path}.")
    elif not boundary.is_file(path):
        raise UserError(f"{path} is no regular file; give a {KINDS_IN_WORDS}, or a folder.")
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
            if name not in SKIPPED_FOLDERS
            and str(here / name) not in NO_FILES
            and not any(boundary.exists(here / name / mark) for mark in ("pyvenv.cfg", "conda-meta"))
        )
        for name in sorted(names):
            file = here / name
            if kind_of(file) is not None and boundary.is_file(file):
                yield file


def kind_of(path: Path) -> str | None:
    """`python`, `notebook`, `shell`, `docker` or `compose` by the file's name; None for any other."""
    name = path.name.lower()
    if path.suffix in PYTHON:
        return "python"
    if path.suffix in NOTEBOOKS:
        return "notebook"
    if name.startswith("dockerfile") or name.endswith((".dockerfile", "containerfile")):
        return "docker"
    if _COMPOSE.fullmatch(name):
        return "compose"
    if path.suffix in SHELL or name == ".env" or name.startswith(".env."):
        return "shell"
    return None


_TESTS = re.compile(r"(^|/)(tests?|testing)(/|$)|(^|/)(test_[^/]*|[^/]*_test|conftest)\.\w+$")


def is_test(file: str) -> bool:
    """Whether a file belongs to tests, by its name or folder."""
    return bool(_TESTS.search(file.replace(os.sep, "/")))
