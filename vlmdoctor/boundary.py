"""Foreign files, names and variables, read with bounds: a failure is one sentence.

Files are regular ones, their size is looked at before their content, their text is UTF-8, and their JSON is
not deep. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import IO, Any

from vlmdoctor.errors import UserError
from vlmdoctor.plain_text import first_line

MOST_TEXT = 64 << 20  # bytes: the largest index of a model with a million tensors is smaller
MOST_DEPTH = 64  # of lists and objects in each other: real configurations have fewer than ten
MOST_DIGITS = 300  # of an integer: more than any float holds
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Without O_NONBLOCK a pipe without a writer would be waited for, for ever.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))

StrPath = str | os.PathLike[str]


class Unreadable(UserError):
    """A file is not there, not regular, too large, not UTF-8 or not JSON; the message is a whole sentence.

    Attributes:
        reason: What is said of the file, without its name: `is a folder, not a regular file`.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message.rstrip(".") if reason is None else reason

    @classmethod
    def of(cls, subject: StrPath, reason: str) -> Unreadable:
        """`subject` and `reason` as a sentence; a subject is a path, or words that end with a noun."""
        return cls(f"{subject} {reason}.", reason)


def exists(path: StrPath) -> bool:
    """Whether there is something of this name; False also for names that no file can have."""
    return _mode(path) is not None


def is_file(path: StrPath) -> bool:
    """Whether it is a regular file, or a link to one; never raises."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_dir(path: StrPath) -> bool:
    """Whether it is a folder; never raises."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def expanded(path: StrPath) -> Path:
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


def size_of(path: StrPath) -> int:
    """Bytes of a regular file; a link is followed.

    Raises:
        Unreadable: It is not there, or no regular file.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise Unreadable.of(path, f"can't be opened: {reason(error).lower()}") from error
    return _regular(path, found)


def open_regular(path: StrPath, most: int | None = None) -> IO[bytes]:
    """A regular file opened for reading, without waiting for a writer.

    Args:
        path: The file; a link is followed.
        most: The largest size in bytes; None: any.

    Raises:
        Unreadable: It is not there, no regular file, or larger.
    """
    size_of(path)  # before opening: opening some devices already does something
    try:
        handle = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        raise Unreadable.of(path, f"can't be opened: {reason(error).lower()}") from error
    try:
        size = _regular(path, os.fstat(handle))  # a pipe may have taken the file's place since
        if most is not None and size > most:
            raise Unreadable.of(path, f"has {size:,} bytes, more than are read ({most:,})")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: StrPath, most: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        Unreadable: It is not there, no regular file, larger, or reading fails.
    """
    with open_regular(path, most) as file:
        try:
            content = file.read(most + 1)  # some files of /proc have a size of 0 and no end
        except OSError as error:
            raise Unreadable.of(path, f"can't be read: {reason(error).lower()}") from error
    if len(content) > most:
        raise Unreadable.of(path, f"has more bytes than are read ({most:,})")
    return content


def read_text(path: StrPath, most: int = MOST_TEXT) -> str:
    """The text of a UTF-8 file of at most `most` bytes.

    Raises:
        Unreadable: As `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable.of(path, f"is not UTF-8 (byte {error.start:,})") from error


def read_json(path: StrPath, most: int = MOST_TEXT, *, unique: bool = False) -> Any:
    """The value in a JSON file; of names that come twice in an object, the last one counts.

    Args:
        path: The file.
        most: Its largest size in bytes.
        unique: Names that come twice are refused instead.

    Raises:
        Unreadable: As `read_text`, or as `parse_json`.
    """
    return parse_json(read_text(path, most), str(path), unique=unique)


def parse_json(text: str, source: str, *, unique: bool = False) -> Any:
    """The value in a JSON text.

    Raises:
        Unreadable: It is no JSON, nested more than MOST_DEPTH deep, or has an integer of more than
            MOST_DIGITS digits; `source` is what the sentence begins with.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise Unreadable.of(source, f"has the name '{twice[:80]}' twice in one object")
        return values

    try:
        value = json.loads(text, parse_int=_integer, object_pairs_hook=once if unique else None)
    except _TooLong as error:
        raise Unreadable.of(source, f"has an integer of {error.digits:,} digits") from None
    except RecursionError:
        raise Unreadable.of(source, f"is nested more than {MOST_DEPTH} deep") from None
    except ValueError as error:
        raise Unreadable.of(source, f"can't be read as JSON: {first_line(error)}") from error
    if deeper_than(value, MOST_DEPTH):
        raise Unreadable.of(source, f"is nested more than {MOST_DEPTH} deep")
    return value


def deeper_than(value: Any, most: int) -> bool:
    """Whether lists and objects are nested more than `most` deep; by a loop, which no depth can exhaust."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        inner: list[Any] = []
        for each in level:
            parts = each.values() if isinstance(each, dict) else each
            inner += [part for part in parts if isinstance(part, dict | list)]
        level = inner
        if not level:
            return False
    return bool(level)


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


class _TooLong(Exception):
    def __init__(self, digits: int) -> None:
        super().__init__()
        self.digits = digits


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _TooLong(len(digits))
    return int(digits)


def _mode(path: StrPath) -> int | None:
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return None


def _regular(path: StrPath, found: os.stat_result) -> int:
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    kind = next((name for test, name in _KINDS if test(found.st_mode)), "no file of a known kind")
    raise Unreadable.of(path, f"is {kind}, not a regular file")
