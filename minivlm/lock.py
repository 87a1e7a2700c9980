"""One process for each run folder, by a lock that the operating system releases however the process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from minivlm.errors import UserError

LOCK = ".lock"
_PID_AT = 0
_LOCKED_AT = 1 << 20  # where nothing is: Windows lets nobody read what is locked
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderInUse(UserError):
    """Another process works in the folder; the message says which."""


class FolderLock:
    """The right to write to a folder.

    Within the process that has it, others may join it; it ends with the last of them. A process that is
    forked off has it not.
    """

    _held: dict[tuple[int, int], FolderLock] = {}  # noqa: RUF012 (of the whole process)

    def __init__(self, folder: Path, descriptor: int, made: list[Path]) -> None:
        self.folder = folder
        self._descriptor = descriptor
        self._made = made
        self._identity = _identity(folder)
        self._process = os.getpid()
        self._users = 1

    @classmethod
    def take(cls, folder: Path, *, join: bool = False) -> FolderLock:
        """Takes the lock of a folder, which is made where it is missing.

        Args:
            join: Whether this process may have it already, and is joined then.

        Raises:
            FolderInUse: Another run has it.
            OSError: The folder can't be made or written.
        """
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        held = cls._held.get(_identity(folder))
        if held is not None and held._process == os.getpid():
            if not join:
                raise FolderInUse(_in_use(folder, os.getpid()))
            held._users += 1
            return held
        while True:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if not _locked(descriptor):
                    raise FolderInUse(_in_use(folder, _holder(descriptor)))
                if _is_at(descriptor, folder / LOCK):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                    lock = cls._held[_identity(folder)] = cls(folder, descriptor, made)
                    return lock
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # whoever had it has just removed the file: the lock of a new one is needed

    def check(self) -> None:
        """Makes sure that the folder is still the one that was locked.

        Raises:
            UserError: It was removed, or another is in its place.
        """
        try:
            there = _identity(self.folder) == self._identity
        except OSError:
            there = False
        if not there:
            raise UserError(
                f"the run folder {self.folder} was removed or renamed while the run was going, so that it "
                "has ended; start it again, or go on with --resume and the folder's new name."
            )

    def release(self, *, unused: bool = False) -> None:
        """Gives it back; more calls do no harm.

        Args:
            unused: Nothing came of it: folders that were made for it are removed where they are empty.
        """
        if self._users > 1:
            self._users -= 1
            return
        if not self._users or self._process != os.getpid():
            return
        self._users = 0
        self._held.pop(self._identity, None)
        with contextlib.suppress(OSError):
            if _is_at(self._descriptor, self.folder / LOCK):
                (self.folder / LOCK).unlink()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        with contextlib.suppress(OSError):
            for path in self._made if unused else ():
                path.rmdir()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_at(descriptor: int, path: Path) -> bool:
    status = os.fstat(descriptor)
    try:
        return _identity(path) == (status.st_dev, status.st_ino)
    except FileNotFoundError:
        return False


def _locked(descriptor: int) -> bool:
    """Whether the lock could be taken; file systems that know no locks are taken to give it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_AT, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, _PID_AT, os.SEEK_SET)
        else:
            import fcntl

            # Not flock, which processes that were forked off (data loaders) would keep past our end.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKED_AT)
    except OSError as error:
        return error.errno in _UNKNOWN
    return True


def _holder(descriptor: int) -> int | None:
    text = os.pread(descriptor, 20, _PID_AT) if hasattr(os, "pread") else os.read(descriptor, 20)
    return int(text) if text.isdigit() else None


def _in_use(folder: Path, process: int | None) -> str:
    who = "this process" if process == os.getpid() else f"process {process}" if process else "another process"
    return f"a run is going on in {folder} already ({who}); wait for its end, or choose another folder."
