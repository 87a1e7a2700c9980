"""Where the project's own files set variables that matter to training, or keep it on the CPU."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlmdoctor import boundary
from vlmdoctor.errors import Unavailable, UserError
from vlmdoctor.plain_text import plain_line

DEPTH = "static"

PYTHON = {".py", ".pyw"}
NOTEBOOKS = {".ipynb"}
SHELL = {".sh", ".bash", ".zsh", ".sbatch", ".slurm", ".pbs", ".lsf", ".csh", ".fish", ".env"}
KINDS_IN_WORDS = "Python file, notebook, shell script, Dockerfile, compose or .env file"
SKIPPED_FOLDERS = {
    *(".git", ".hg", ".svn", "node_modules", "site-packages", "dist-packages", "__pycache__", ".tox", ".nox"),
    *(".ipynb_checkpoints", ".eggs", "wandb", "mlruns"),
}
NO_FILES = {"/proc", "/sys", "/dev"}  # of the kernel's, and endless
LARGEST = 20_000_000
MOST_FILES = 20_000
_COMPOSE = re.compile(r"(docker-)?compose([.-][\w.-]*)?\.ya?ml")
# Most files have nothing to do with it, and looking for traces saves parsing them: of names that matter, in
# Python beside a way to set them, or of the CPU beside a training.
_NAMES = re.compile(
    rb"[\w-]{0,30}(?:VISIB|CUDA_|ALLOC_CONF|HF_|OFFLINE|TRANSFORMERS_|HUGGINGFACE|_THREADS|NCCL|USE_TORCH|_DEBUG"
    rb"|USE_CPU|_CACHING)[\w-]{0,30}"
)
_SETS = re.compile(
    rb"environ\s*(?:\[[^\]]{0,100}\]\s*=(?!=)|\.\s*(?:update|setdefault|pop|__\w+item__)\s*\(|\|=)"
    rb"|del\s+[\w.]*environ|putenv|unsetenv|%(?:set_)?env"
)
_CPU = re.compile(
    # At the start of a line, which in a notebook may follow a written-out \n.
    rb"(?:^|\\n)[ \t\"]*(?:\w+ *= *)?\w+\.(?:cpu\(\)|to\( *(?:torch\.device\()?\\?[\"']cpu)"
    rb"|(?i:device) *(?::[^=\n]{0,40})?= *(?:torch\.)?(?:device\( *)?\\?[\"']cpu"
    rb"|(?:use_cpu|no_cuda|cpu) *= *True|accelerator *= *\\?[\"']cpu",
    re.MULTILINE,
)
_TRAINING = re.compile(rb"\.backward\(|\btrainer\.(?:train|fit)\(|\.fit\(|\.train_model\(")
_STARTS = re.compile(rb"--cpu|--device|--no_cuda|--use_cpu|deepspeed")


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
        late: What ran before in the file, so that the setting has no effect any more, in words.
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
    late: str | None = None


@dataclass(frozen=True)
class OnCpu:
    """A place that keeps a training on the CPU, whatever GPUs there are.

    Attributes:
        file, line, cell, code, in_tests: As in `Setting`.
        what: What it does, in words.
    """

    file: str
    line: int
    what: str
    code: str
    cell: int | None = None
    in_tests: bool = False


@dataclass(frozen=True)
class Launch:
    """A start of the deepspeed launcher that chooses GPUs itself, while CUDA_VISIBLE_DEVICES does so too.

    Attributes:
        file, line, code: As in `Setting`.
        option: The launcher's option.
        value: The variable's value.
    """

    file: str
    line: int
    code: str
    option: str
    value: str


@dataclass(frozen=True)
class Source:
    """What was found in the files.

    Attributes:
        files: How many were read.
        settings: Where they set variables.
        unread: (file, reason) of those that could not be read.
        on_cpu: Where they keep a training on the CPU.
        launches: Where a launcher and CUDA_VISIBLE_DEVICES both choose.
    """

    files: int
    settings: tuple[Setting, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    on_cpu: tuple[OnCpu, ...] = ()
    launches: tuple[Launch, ...] = ()


def probe(subject: object, gather: Callable[[type], object]) -> Source:
    """There is no telling which files belong to a model in memory."""
    raise Unavailable("no source files were given")


def scan(paths: Iterable[Path]) -> Source:
    """Reads files, and what is in folders but version control, environments and installed packages.

    Raises:
        UserError: A path does not exist, is of a kind that can't be read, or holds no file that can.
    """
    found: list[Setting | OnCpu | Launch] = []
    unread: list[tuple[str, str]] = []
    count = 0
    for path in paths:
        before = count
        for file in _files(path):
            if count == MOST_FILES:
                unread.append((str(path), f"only its first {MOST_FILES} files were searched"))
                break
            count += 1
            try:
                found += _found_in(file)
            except Unavailable as reason:
                unread.append((str(file), str(reason)))
        if count == before:
            raise UserError(f"{path} holds no {KINDS_IN_WORDS} to read.")
    return Source(
        count,
        tuple(place for place in found if isinstance(place, Setting)),
        tuple(unread),
        tuple(place for place in found if isinstance(place, OnCpu)),
        tuple(place for place in found if isinstance(place, Launch)),
    )


def _files(path: Path) -> Iterator[Path]:
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


def _found_in(file: Path) -> list[Setting | OnCpu | Launch]:
    from vlmdoctor.evidence import source_containers, source_python, source_shell

    try:
        data = boundary.read_bytes(file, LARGEST)
    except boundary.Unreadable as error:
        raise Unavailable(error.reason) from None
    kind = kind_of(file) or "python"
    if not _may_matter(kind, data):
        return []
    text = data.decode("utf-8", errors="replace")
    reader = {
        "python": source_python.in_python,
        "notebook": source_python.in_notebook,
        "shell": source_shell.in_shell,
        "docker": source_containers.in_dockerfile,
        "compose": source_containers.in_compose,
    }[kind]
    try:
        return [_plain(place) for place in reader(str(file), text)]
    except (RecursionError, MemoryError):
        raise Unavailable("nested too deeply") from None


def _plain(place: Setting | OnCpu | Launch) -> Setting | OnCpu | Launch:
    """The same, with the text of the file as it may be shown; values are judged as they are."""
    return dataclasses.replace(place, file=plain_line(place.file), code=plain_line(place.code))


def _may_matter(kind: str, data: bytes) -> bool:
    from vlmdoctor.evidence.source_watched import is_watched

    if kind in ("python", "notebook"):
        if _TRAINING.search(data) and _CPU.search(data):
            return True
        if not _SETS.search(data):
            return False
    elif _STARTS.search(data):
        return True
    return any(is_watched(name.decode(errors="replace")) for name in set(_NAMES.findall(data)))


_TESTS = re.compile(r"(^|/)(tests?|testing)(/|$)|(^|/)(test_[^/]*|[^/]*_test|conftest)\.\w+$")


def is_test(file: str) -> bool:
    """Whether a file belongs to tests, by its name or folder."""
    return bool(_TESTS.search(file.replace(os.sep, "/")))
