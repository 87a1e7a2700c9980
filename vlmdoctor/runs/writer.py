"""Writes a run folder: rows that survive a kill -9, and whole files that are never half written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

from minivlm.lock import FolderInUse, FolderLock
from vlmdoctor.errors import UserError
from vlmdoctor.evidence.steps import Track
from vlmdoctor.runs import schema

log = logging.getLogger("vlmdoctor")

_UNFINISHED = ("*.json.part", ".*.png.part", ".summary.json.*", ".report.html.*")
_recorders: WeakValueDictionary[Path, Recorder] = WeakValueDictionary()


class Recorder:
    """Records one run. A folder that can't be written at the start is the user's error; a disk that
    fills up later is said once, and the run goes on unrecorded. So is a folder in which another process
    records or trains; a later recorder of this process ends the earlier one.

    Args:
        folder: Made where it is missing.
        resumed: Append to the rows that are there; otherwise earlier rows are moved aside to
            `run-1.jsonl` and so on, never overwritten.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resumed: bool = False) -> None:
        self.folder = Path(folder)
        self._told = False
        self._lock: FolderLock | None = None
        self._rows: IO[str] | None = None
        try:
            self._lock = FolderLock.take(self.folder, join=True)
            self._end_earlier()
            self._remove_unfinished()
            path = self.folder / schema.ROWS
            if path.exists() and not resumed:
                path.rename(self._free_name())
            # A kill -9 may have torn the last line: what follows must not continue it.
            torn = path.exists() and path.stat().st_size > 0 and not _ends_with_newline(path)
            self._rows = path.open("a", encoding="utf-8")
            if torn:
                self._rows.write("\n")
        except FolderInUse as error:
            self._told = True
            log.warning("nothing is recorded: %s The run itself goes on.", error)
        except OSError as error:
            self.close()
            raise UserError(
                f"the run folder '{folder}' can't be written ({error.strerror}); choose another one."
            ) from error

    def start(self, info: Mapping[str, Any]) -> None:
        """Writes `run.json`."""
        self._write_whole(schema.RUN, {"schema_version": schema.SCHEMA_VERSION, **info})

    def row(self, event: str, values: Mapping[str, Any]) -> None:
        """Appends one flat row; values that JSON can't hold are written as text."""
        if self._told or self._rows is None or self._rows.closed:
            return
        try:
            self._rows.write(json.dumps({"event": event, **values}, default=_plain) + "\n")
            self._rows.flush()
        except OSError as error:
            self._give_up(error)

    def tracks(self, tracks: tuple[Track, ...], more: Mapping[str, Any]) -> None:
        """Rewrites `tracks.json`."""
        self._write_whole(schema.TRACKS, {**more, "tracks": [vars(track) for track in tracks]})

    def close(self) -> None:
        """Closes the file, and leaves the folder to others; a second call does nothing."""
        try:
            if self._rows is not None:
                self._rows.close()
        except OSError as error:
            self._give_up(error)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def abandon(self) -> None:
        """Records nothing more, without a word: whoever calls it has said why."""
        self._told = True

    def _write_whole(self, name: str, content: Mapping[str, Any]) -> None:
        if self._told:
            return
        path = self.folder / name
        part = path.with_name(name + ".part")
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump(content, file, default=_plain)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self._give_up(error)

    def _end_earlier(self) -> None:
        """A notebook's cell that is run again makes a second recorder, while the first was never closed."""
        place = self.folder.resolve()
        earlier = _recorders.get(place)
        if earlier is not None and earlier._lock is not None and not earlier._told:
            log.warning("recording to '%s' goes on with the watcher that was made last.", self.folder)
            earlier.abandon()
            earlier.close()
        _recorders[place] = self

    def _remove_unfinished(self) -> None:
        """Removes what a run that was killed, or the drawing of its plots, left half written."""
        for pattern in _UNFINISHED:
            for left_over in self.folder.glob(pattern):
                left_over.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "recording to '%s' stopped: %s; the run itself goes on.", self.folder, error.strerror or error
            )

    def _free_name(self) -> Path:
        number = 1
        while (path := self.folder / f"run-{number}.jsonl").exists():
            number += 1
        return path


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if hasattr(value, "item") and getattr(value, "size", None) == 1:  # a numpy number
        return value.item()
    return str(value)
