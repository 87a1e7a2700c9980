"""An unnamed temporary file for values that are needed again: reserved, written and read back before use."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch

from vlmdoctor.sandbox import reading

# Values pass through one buffer of so many bytes: nothing is allocated when they are put back.
CHUNK = 1 << 20
# What a file system needs beside the content, for its own tables.
MARGIN = 1 << 20
_IN_MEMORY_KINDS = ("tmpfs", "ramfs", "devtmpfs")


class KeptFile:
    """A file without a name and without a buffer of Python's, which the operating system removes.

    Raises:
        OSError: No folder has room for `size` bytes.
    """

    def __init__(self, size: int) -> None:
        self._buffer = torch.empty(min(CHUNK, max(size, 1)), dtype=torch.uint8)
        self._end = 0
        last: OSError = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for folder in folders():
            try:
                self._file = _reserved(folder, size)
            except OSError as error:
                last = error
            else:
                self.close = weakref.finalize(self, self._file.close)
                return
        raise last

    def append(self, content: torch.Tensor) -> int:
        """Writes flat bytes at the end; the place where they begin.

        Raises:
            OSError: They could not be written, or are not read back as they are.
        """
        place = self._end
        self._file.seek(place)
        for part in content.split(len(self._buffer)):
            self._buffer[: len(part)].copy_(part)
            _write_all(self._file, self._buffer.numpy().data[: len(part)])
        self._end += len(content)
        return place

    def check(self, contents: list[tuple[int, torch.Tensor]]) -> None:
        """Reads back what was written at those places.

        Raises:
            OSError: It can't be read, or differs.
        """
        for place, content in contents:
            for part, found in self._read(place, content):
                if not same_bytes(part, found):
                    raise OSError(errno.EIO, "what was written is read back as something else")

    def fill(self, place: int, target: torch.Tensor) -> None:
        """Gives flat bytes the values that were written at a place; equal ones are not written to.

        Raises:
            OSError: They can't be read; what comes before that place in the file has been filled.
        """
        for part, found in self._read(place, target):
            if not same_bytes(part, found):
                part.copy_(found)

    def _read(self, place: int, content: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(a piece of `content`, what the file has in its place), one after the other."""
        for part in content.split(len(self._buffer)):
            try:
                self._read_all(place, len(part))
            except OSError:  # a second try: disks recover, and a weight is at stake
                self._read_all(place, len(part))
            yield part, self._buffer[: len(part)]
            place += len(part)

    def _read_all(self, place: int, size: int) -> None:
        self._file.seek(place)
        view, done = self._buffer.numpy().data, 0
        while done < size:
            count = self._file.readinto(view[done:size])
            if not count:
                raise OSError(errno.EIO, "the file has become shorter")
            done += count


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether flat bytes are equal; eight at a time where they lie so, which takes a tenth of the time."""
    size = len(one) - len(one) % 8
    if one.storage_offset() % 8 or other.storage_offset() % 8 or len(one) != len(other):
        return torch.equal(one, other)
    whole = torch.equal(one[:size].view(torch.int64), other[:size].view(torch.int64))
    return whole and (size == len(one) or torch.equal(one[size:], other[size:]))


def folders() -> list[Path]:
    """Where large temporary files may go: folders on a disk, none that is in memory itself.

    A folder that the user has chosen (`TMPDIR`) is the only one. `/var/tmp` is where systems with `/tmp` in
    memory want large files.
    """
    chosen = [Path(tempfile.gettempdir())]
    if not any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")) and os.name == "posix":
        chosen.append(Path("/var/tmp"))
    return [folder for folder in chosen if not in_memory(folder)]


def in_memory(folder: Path) -> bool:
    """Whether files in that folder take memory, by Linux's table of mounts; elsewhere the answer is no."""
    try:
        device = folder.stat().st_dev
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}" if hasattr(os, "major") else ""
    for line in reading.text(Path("/proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [number] and after.split()[:1]:
            return after.split()[0] in _IN_MEMORY_KINDS
    return False


def _reserved(folder: Path, size: int) -> io.RawIOBase:
    """A file with room for `size` bytes."""
    if shutil.disk_usage(folder).free < size + MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 (closed with the KeptFile)
    try:
        _reserve(file, size)
    except BaseException:
        file.close()
        raise
    return file


def _reserve(file: io.RawIOBase, size: int) -> None:
    """Takes the room before it is needed: by asking for it, or where nobody can be asked, by writing."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        else:
            return
    zeros = memoryview(bytes(min(CHUNK, size)))
    for start in range(0, size, CHUNK):
        _write_all(file, zeros[: min(CHUNK, size - start)])
    os.fsync(file.fileno())  # some file systems notice only now that they are full


def _write_all(file: io.RawIOBase, content: memoryview) -> None:
    while len(content):
        count = file.write(content)
        if not count:
            raise OSError(errno.ENOSPC, "nothing could be written")
        content = content[count:]
