"""Foreign files: regular ones only, sizes before content, their text UTF-8, their JSON not deep."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import IO, Any

from vlmdoctor.errors import UserError

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


class Unreadable(UserError):
    """A file is not there, not regular, too large, not UTF-8 or not JSON; the message is a whole sentence."""


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a regular file; a link is followed.

    Raises:
        Unreadable: It is not there, or no regular file.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise Unreadable(f"{_shown(path)} can't be opened: {_reason(error)}.") from error
    return _regular(path, found)


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether it is a regular file, or a link to one; never raises."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def open_regular(path: str | os.PathLike[str], most: int | None = None) -> IO[bytes]:
    """A regular file opened for reading, without waiting for a writer.

    Args:
        path: The file; a link is followed.
        most: The largest size in bytes; None: any.

    Raises:
        Unreadable: It is not there, no regular file, or larger.
    """
    size_of(path)  # before opening: opening some devices already does something
    try:
        # Without O_NONBLOCK a pipe that took the file's place since would be waited for.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise Unreadable(f"{_shown(path)} can't be opened: {_reason(error)}.") from error
    try:
        size = _regular(path, os.fstat(handle))
        if most is not None and size > most:
            raise Unreadable(f"{_shown(path)} has {size:,} bytes, more than are read ({most:,}).")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | os.PathLike[str], most: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        Unreadable: It is not there, no regular file, larger, or reading fails.
    """
    with open_regular(path, most) as file:
        try:
            content = file.read(most + 1)  # some files of /proc have a size of 0 and no end
        except OSError as error:
            raise Unreadable(f"{_shown(path)} can't be read: {_reason(error)}.") from error
    if len(content) > most:
        raise Unreadable(f"{_shown(path)} has more bytes than are read ({most:,}).")
    return content


def read_text(path: str | os.PathLike[str], most: int = MOST_TEXT) -> str:
    """The text of a UTF-8 file of at most `most` bytes.

    Raises:
        Unreadable: As `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"{_shown(path)} is not UTF-8 (byte {error.start:,}).") from error


def read_json(path: str | os.PathLike[str], most: int = MOST_TEXT, *, unique: bool = False) -> Any:
    """The value in a JSON file; of names that come twice in an object, the last one counts.

    Args:
        path: The file.
        most: Its largest size in bytes.
        unique: Names that come twice are refused instead.

    Raises:
        Unreadable: As `read_text`, or as `parse_json`.
    """
    return parse_json(read_text(path, most), _shown(path), unique=unique)


def parse_json(text: str, source: str, *, unique: bool = False) -> Any:
    """The value in a JSON text.

    Raises:
        Unreadable: It is no JSON, nested more than MOST_DEPTH deep, or has an integer of more than
            MOST_DIGITS digits; `source` is what the sentence begins with.
    """

    def integer(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            raise Unreadable(f"{source} has an integer of {len(digits):,} digits.")
        return int(digits)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise Unreadable(f"{source} has the name '{twice[:80]}' twice in one object.")
        return values

    try:
        value = json.loads(text, parse_int=integer, object_pairs_hook=once if unique else None)
    except RecursionError:
        raise Unreadable(f"{source} is nested more than {MOST_DEPTH} deep.") from None
    except ValueError as error:
        raise Unreadable(f"{source} can't be read as JSON: {error}.") from error
    if deeper_than(value, MOST_DEPTH):
        raise Unreadable(f"{source} is nested more than {MOST_DEPTH} deep.")
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


def _regular(path: str | os.PathLike[str], found: os.stat_result) -> int:
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    kind = next((name for test, name in _KINDS if test(found.st_mode)), "no file of a known kind")
    raise Unreadable(f"{_shown(path)} is {kind}, not a regular file.")


def _shown(path: str | os.PathLike[str]) -> str:
    return str(Path(path))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()
