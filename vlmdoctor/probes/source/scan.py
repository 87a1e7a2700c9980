"""Where the project's own files set variables that matter to training, or keep it on the CPU."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from vlmdoctor import boundary
from vlmdoctor.errors import Unavailable, UserError
from vlmdoctor.evidence.source import Launch, OnCpu, Setting, Source
from vlmdoctor.knowledge.watched_variables import is_watched
from vlmdoctor.plain_text import plain_line
from vlmdoctor.probes.source.files import KINDS_IN_WORDS, MOST_FILES, files_in, kind_of

LARGEST = 20_000_000
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
        for file in files_in(path):
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
        files=count,
        settings=tuple(place for place in found if isinstance(place, Setting)),
        unread=tuple(unread),
        on_cpu=tuple(place for place in found if isinstance(place, OnCpu)),
        launches=tuple(place for place in found if isinstance(place, Launch)),
    )


def _found_in(file: Path) -> list[Setting | OnCpu | Launch]:
    from vlmdoctor.probes.source import containers, python, shell

    try:
        data = boundary.read_bytes(file, LARGEST)
    except boundary.Unreadable as error:
        raise Unavailable(error.reason) from None
    kind = kind_of(file) or "python"
    if not _may_matter(kind, data):
        return []
    text = data.decode("utf-8", errors="replace")
    reader = {
        "python": python.in_python,
        "notebook": python.in_notebook,
        "shell": shell.in_shell,
        "docker": containers.in_dockerfile,
        "compose": containers.in_compose,
    }[kind]
    try:
        return [_plain(place) for place in reader(str(file), text)]
    except (RecursionError, MemoryError):
        raise Unavailable("nested too deeply") from None


def _plain(place: Setting | OnCpu | Launch) -> Setting | OnCpu | Launch:
    """The same, with the text of the file as it may be shown; values are judged as they are."""
    return dataclasses.replace(place, file=plain_line(place.file), code=plain_line(place.code))


def _may_matter(kind: str, data: bytes) -> bool:
    if kind in ("python", "notebook"):
        if _TRAINING.search(data) and _CPU.search(data):
            return True
        if not _SETS.search(data):
            return False
    elif _STARTS.search(data):
        return True
    return any(is_watched(name.decode(errors="replace")) for name in set(_NAMES.findall(data)))
