"""What a command left behind: states of all files before and after, and baits that were read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

_HASHED = 1 << 24  # larger files are compared by size and time of change
_OLD = 1_000_000_000  # a time of reading that is before every time of change


def states(root: Path) -> dict[str, tuple[object, ...]]:
    """Kind, permissions and content of everything below `root`, by path; links are not followed."""
    return {str(path.relative_to(root)): _state(path) for path in _below(root)}


def _below(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = folder / entry.name
        yield path
        if entry.is_dir(follow_symlinks=False):
            yield from _below(path)


def _state(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return ("link", os.readlink(path))  # noqa: PTH115
    if stat.S_ISREG(found.st_mode):
        if found.st_size > _HASHED:
            return ("file", found.st_mode, found.st_size, found.st_mtime_ns)
        try:
            return ("file", found.st_mode, hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            return ("file", found.st_mode, found.st_size, found.st_mtime_ns)
    return ("other", found.st_mode)


def differences(
    before: Mapping[str, tuple[object, ...]], after: Mapping[str, tuple[object, ...]]
) -> tuple[tuple[str, str], ...]:
    """(path, `added`, `removed` or `changed`), sorted."""
    found = [(path, "removed") for path in before if path not in after]
    found += [(path, "added") for path in after if path not in before]
    found += [(path, "changed") for path in before if path in after and before[path] != after[path]]
    return tuple(sorted(found))


def rearm(folder: Path) -> None:
    """Sets the times of the baits so that reading one shows; file systems update a time that is too old."""
    for path in _below(folder):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (_OLD, _OLD + 1))


def read_since(folder: Path) -> tuple[str, ...]:
    """The baits that were read since `rearm`."""
    return tuple(
        path.name
        for path in _below(folder)
        if path.is_file() and not path.is_symlink() and path.lstat().st_atime != _OLD
    )
