"""One hostile input: a command line, its files, its variables, and what the command may do with them."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Folders of a sandbox. The command runs in IN.
IN, OUT, TMP, HOME, BAIT = "in", "out", "tmp", "home", "bait"
CANARY = "EXECUTED"  # a file of this name, wherever it is, means that a payload ran

# What the three standard streams are.
PLAIN, FULL_OUT, FULL_ERR, CLOSED_OUT, CLOSED_ERR, CLOSED_IN, GONE = (
    *("plain", "full stdout", "full stderr"),
    *("closed stdout", "closed stderr", "closed stdin", "stdout without a reader"),
)
STREAMS = (PLAIN, FULL_OUT, FULL_ERR, CLOSED_OUT, CLOSED_ERR, CLOSED_IN, GONE)


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Fifo:
    """A named pipe that nobody writes to."""


@dataclass(frozen=True)
class Sparse:
    """A file of `size` bytes that takes no room: `head`, then zeros."""

    size: int
    head: bytes = b""


@dataclass(frozen=True)
class Folder:
    """An empty folder with these permissions."""

    mode: int = 0o755


@dataclass(frozen=True)
class Base:
    """A whole folder made by `harness.bases` under this name; later entries replace its files."""

    name: str


@dataclass(frozen=True)
class Edit:
    """What a base has at this place, changed by the function of `harness.edits` with this name."""

    how: str
    seed: int


Content = bytes | Edit | Link | Fifo | Sparse | Folder | Base | None


@dataclass(frozen=True)
class Trial:
    """One input.

    Attributes:
        what: What it tries, in words.
        argv: The arguments after `vlmdoctor`; bytes that are no UTF-8 as lone surrogates.
        files: Content by path below the sandbox (`in/config.json`); None removes a file of a base.
        env: Variables beside the plain ones; None removes one.
        streams: One of STREAMS.
        encoding: Of the standard streams.
        may_change: Patterns of paths below the sandbox that the command may write.
        seconds: When it counts as hung.
        fresh: Whether a new interpreter is needed: for what the state of an import decides.
        call: `module:function` to be called with `argument` in the child instead of a command line; it
            raises AssertionError where something is wrong.
        argument: What `call` is called with.
    """

    what: str
    argv: tuple[str, ...] = ()
    files: Mapping[str, Content] = field(default_factory=dict)
    env: Mapping[str, str | None] = field(default_factory=dict)
    streams: str = PLAIN
    encoding: str = "utf-8"
    may_change: tuple[str, ...] = (f"{OUT}/*", f"{HOME}/*")
    seconds: float = 10.0
    fresh: bool = False
    call: str | None = None
    argument: object = None

    @property
    def output_format(self) -> str:
        """The format that was asked for."""
        for before, after in itertools.pairwise(self.argv):
            if before == "--output-format":
                return after
        return next((a.partition("=")[2] for a in self.argv if a.startswith("--output-format=")), "full")

    @property
    def verbose(self) -> bool:
        """Whether tracebacks of a cause were asked for."""
        return bool({"-v", "--verbose"} & set(self.argv)) or any(
            len(a) > 1 and a[0] == "-" and a[1] != "-" and "v" in a for a in self.argv
        )


def numbered(name: str, one: Callable[[random.Random, int], Trial], seed: int, count: int) -> Iterator[Trial]:
    """`count` trials of a class, each from its own seed, so that any of them can be made alone."""
    for index in range(count):
        yield one(random.Random(f"{seed}/{name}/{index}"), index)


def materialise(trial: Trial, sandbox: Path, bases: Callable[[str], Path]) -> None:
    """Writes the files of a trial; parents are made as needed."""
    for name in (IN, OUT, TMP, HOME, BAIT):
        (sandbox / name).mkdir()
    for name, content in trial.files.items():
        _write(sandbox / os.fsdecode(name), content, bases)


def _write(path: Path, content: Content, bases: Callable[[str], Path]) -> None:
    if isinstance(content, Base):
        import shutil

        shutil.copytree(bases(content.name), path, symlinks=True, dirs_exist_ok=True)
        return
    if isinstance(content, Edit):
        from benchmarks.hostile.harness.edits import edited

        content = edited(content.how, content.seed, path)
    if path.is_symlink() or path.is_file():
        path.unlink()
    if content is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    match content:
        case bytes():
            path.write_bytes(content)
        case Link():
            path.symlink_to(content.target)
        case Fifo():
            os.mkfifo(path)
        case Sparse():
            with path.open("wb") as stream:
                stream.write(content.head)
                stream.truncate(content.size)
        case Folder():
            path.mkdir(exist_ok=True)
            path.chmod(content.mode)
