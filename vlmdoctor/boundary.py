"""Files that others made, read with bounds: regular files only, up to a size; a failure is one sentence."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.plain_text import first_line


class Unreadable(UserError):
    """A file can't be read.

    Attributes:
        reason: Why, in words that fit behind a colon.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"can't read {path}: {reason}.")
        self.reason = reason


def exists(path: Path | str) -> bool:
    """Whether there is something of this name; False also for names that no file can have."""
    return _mode(path) is not None


def is_file(path: Path | str) -> bool:
    """Whether it is a regular file; never raises."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_dir(path: Path | str) -> bool:
    """Whether it is a folder; never raises."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def expanded(path: Path | str) -> Path:
    """The path with `~` replaced by a home; as it is where there is no such home."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, OSError):
        return Path(path)


def current_folder() -> Path:
    """The current folder; raises `UserError` where it was deleted."""
    try:
        return Path.cwd()
    except OSError as error:
        raise UserError(
            f"the current folder is not there any more ({reason(error)}); go to another."
        ) from None


def read_bytes(path: Path | str, limit: int) -> bytes:
    """The whole content of a regular file of at most `limit` bytes; raises `Unreadable`."""
    try:
        # A pipe without a writer would be waited for, for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as stream:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise Unreadable(path, "it is no regular file")
            if found.st_size > limit:
                raise Unreadable(path, f"it is larger than {_size(limit)}")
            data = stream.read(limit + 1)
    except (OSError, ValueError) as error:
        raise Unreadable(path, reason(error)) from None
    if len(data) > limit:  # what /proc holds has no size
        raise Unreadable(path, f"it is larger than {_size(limit)}")
    return data


def read_text(path: Path | str, limit: int) -> str:
    """The content of a UTF-8 file, a BOM left out; raises `Unreadable`."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(path, f"it is no UTF-8 text (byte {error.start})") from None


def read_json(path: Path | str, limit: int) -> Any:
    """The value in a JSON file; raises `Unreadable`, also where it is nested too deeply."""
    try:
        return json.loads(read_text(path, limit))
    except RecursionError:
        raise Unreadable(path, "it is nested too deeply") from None
    except ValueError as error:
        raise Unreadable(path, f"it is no JSON ({first_line(error)})") from None


def whole_number(name: str, default: int = 0) -> int:
    """A variable of the environment, such as RANK; raises `UserError` where it is no number from 0 on."""
    value = os.environ.get(name, "").strip()
    if not value:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise UserError(
            f"{name} is set to '{value}', which is no number from 0 on; unset it, or use torchrun."
        )
    return int(value)


def reason(error: BaseException) -> str:
    """What the system said, without the name of the file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ValueError):
        return "no file can have that name"
    return first_line(error)


def _mode(path: Path | str) -> int | None:
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return None


def _size(limit: int) -> str:
    return f"{limit // 1_000_000} MB" if limit >= 1_000_000 else f"{limit} bytes"
