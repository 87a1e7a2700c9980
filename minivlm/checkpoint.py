"""Checkpoints that are either whole or not there.

    RUN/checkpoints/step-000500/
        config.json, model.safetensors, …   model, tokenizer and processor: what `from_pretrained` reads
        training_state.pt                   optimizer, scaler, random numbers, settings: what a resume needs
        manifest.json                       size and hash of every file, so that a broken one is noticed
    RUN/checkpoint                          a link to the newest of them

Each is written under another name beside its place and renamed at the end, which file systems do at once or
not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection
from pathlib import Path

from safetensors import SafetensorError

from minivlm.errors import UserError, whole_reason_of

FOLDER, LATEST = "checkpoints", "checkpoint"
STATE, MANIFEST = "training_state.pt", "manifest.json"
_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = ".unfinished-"
_WRITABLE = ".writable-"
_NEEDED = ("config.json", STATE)
_MOST_MANIFEST = 4 << 20  # bytes; a checkpoint's own is a few kilobytes


class BrokenCheckpoint(Exception):
    """A checkpoint that can't be used, and why."""


def save_checkpoint(run_folder: Path, step: int, write: Callable[[Path], None], keep_last: int) -> Path:
    """Writes a checkpoint after `step` steps and deletes all but the newest `keep_last`.

    Args:
        write: Fills the folder that it is given.

    Raises:
        UserError: The disk is full or can't be written; checkpoints that were there stay whole.
    """
    final = run_folder / FOLDER / f"step-{step:06d}"
    unfinished = final.with_name(f"{_UNFINISHED}{final.name}")
    try:
        final.parent.mkdir(exist_ok=True)  # no parents: a run folder that was removed stays so
        remove_unfinished(run_folder)
        unfinished.mkdir()
        write(unfinished)
        _write_manifest(unfinished)
        for path in [*unfinished.rglob("*"), unfinished]:
            _flush(path)
        if final.exists():
            shutil.rmtree(final)
        unfinished.rename(final)
        _flush(final.parent)
        _point_to(run_folder / LATEST, final)
        for old in checkpoints(run_folder)[:-keep_last]:
            shutil.rmtree(old)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        # torch and safetensors report a full disk with exceptions of their own.
        if not isinstance(error, OSError | RuntimeError | SafetensorError):
            raise
        raise UserError(_cannot_save(run_folder, step, error)) from error
    return final


def remove_unfinished(run_folder: Path) -> None:
    """Removes what a run that was killed left half written."""
    for pattern in (f"{_UNFINISHED}*", f"{FOLDER}/{_UNFINISHED}*", f"{_WRITABLE}*"):
        for left_over in run_folder.glob(pattern):
            if left_over.is_dir() and not left_over.is_symlink():
                shutil.rmtree(left_over, ignore_errors=True)
            else:
                left_over.unlink(missing_ok=True)


def checkpoints(run_folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folder = run_folder / FOLDER
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """How many steps had been taken."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else 0


def verify(checkpoint: Path) -> None:
    """Compares every file with the manifest.

    Raises:
        BrokenCheckpoint: Names the first file that is missing or differs.
    """
    try:
        found = (checkpoint / MANIFEST).stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, and a device has no end
            raise BrokenCheckpoint(f"{MANIFEST} is not a file")
        if found.st_size > _MOST_MANIFEST:
            raise BrokenCheckpoint(f"{MANIFEST} is too large to be one")
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name in _NEEDED:
            if name not in manifest:
                raise BrokenCheckpoint(f"{MANIFEST} does not list {name}")
        for name, expected in manifest.items():
            file = _inside(checkpoint, name)
            if file.stat().st_size != expected["bytes"]:
                raise BrokenCheckpoint(
                    f"{name} has {file.stat().st_size:,} bytes instead of {expected['bytes']:,}"
                )
            if _hash(file) != expected["sha256"]:
                raise BrokenCheckpoint(f"{name} was changed or damaged after it was written")
    except FileNotFoundError as error:
        raise BrokenCheckpoint(f"{Path(error.filename).name} is missing") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BrokenCheckpoint(f"{MANIFEST} can't be read") from error


def _inside(checkpoint: Path, name: str) -> Path:
    """The file of that name; a manifest may only list what is in its own folder."""
    file = checkpoint / name
    try:
        place = file.resolve()
    except RuntimeError as error:  # a loop of links, before Python 3.13
        raise BrokenCheckpoint(f"{name} is not a file") from error
    if not place.is_relative_to(checkpoint.resolve()):
        raise BrokenCheckpoint(f"{MANIFEST} lists {name!r}, which is outside of the checkpoint")
    if file.exists() and not file.is_file():
        raise BrokenCheckpoint(f"{name} is not a file")
    return file


def newest_usable(run_folder: Path, warn: Callable[[str], None], unusable: Collection[Path] = ()) -> Path:
    """The newest checkpoint that is whole; `warn` is given a sentence for each broken one before it.

    Args:
        unusable: Those that were found to be no use already.

    Raises:
        UserError: There is none.
    """
    found = checkpoints(run_folder)
    for path in reversed(found):
        if path in unusable:
            continue
        try:
            verify(path)
        except BrokenCheckpoint as error:
            warn(f"checkpoint {path} is broken ({error}); trying the one before.")
        else:
            return path
    if found:
        raise UserError(
            f"no checkpoint in {run_folder / FOLDER} is usable; the newest, {found[-1].name}, is broken."
        )
    raise UserError(
        f"there is no checkpoint to resume in {run_folder}; leave --resume out to start a new run."
    )


def set_aside_after(run_folder: Path, step: int) -> None:
    """Renames the checkpoints after `step`, from where the run now goes another way (or which are broken)."""
    for path in checkpoints(run_folder):
        if step_of(path) > step:
            number = 1
            while (aside := path.with_name(f"set-aside-{number}-{path.name}")).exists():
                number += 1
            path.rename(aside)


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint folder that a user means: the folder itself, or the newest one of a run folder.

    Raises:
        UserError: Neither.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    if found := checkpoints(folder):
        return found[-1]
    what = "holds no checkpoint" if folder.is_dir() else "does not exist"
    raise UserError(f"{folder} {what}; train a model first with: python -m minivlm train --out {folder}")


def check_space(folder: Path, needed: int) -> None:
    """Makes sure, before any work, that checkpoints can be written to a folder.

    Raises:
        UserError: It can't be made or written, or has fewer than `needed` bytes free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{_WRITABLE}{os.getpid()}"
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"the run folder {folder} can't be written ({error.strerror}); choose another with --out."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk of {folder} has {free / 2**20:,.0f} MiB free, and the checkpoints of this run need "
            f"about {needed / 2**20:,.0f} MiB; free some space, choose another --out, or lower --keep-last."
        )


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file so that a reader sees the old text or the new, never half of it.

    Raises:
        UserError: It can't be written.
    """
    unfinished = path.with_name(f"{_UNFINISHED}{path.name}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        _flush(unfinished)
        unfinished.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(f"{path} could not be written: {_reason(error)}.") from error


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in files
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Has the operating system write what it only remembers, so that not even a power cut takes it."""
    if path.is_dir() and os.name == "nt":
        return  # Windows can't open folders, and needs no flush of them
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point_to(link: Path, target: Path) -> None:
    unfinished = link.with_name(f"{_UNFINISHED}{link.name}")
    try:
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(target.relative_to(link.parent), target_is_directory=True)
        unfinished.replace(link)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        # A convenience only: some file systems and Windows accounts have no links.


def _cannot_save(run_folder: Path, step: int, error: Exception) -> str:
    last = checkpoints(run_folder)
    kept = (
        f"{last[-1]} is whole: make room, then go on with --resume." if last else "There was none before it."
    )
    return f"the checkpoint after {step} steps could not be written to {run_folder}: {_reason(error)}. {kept}"


def _reason(error: BaseException) -> str:
    """Why something could not be written, in words."""
    first: BaseException | None = error
    while first is not None:  # torch's own error about a short file comes after the one that says why
        if getattr(first, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "space left" in str(first):
            return "the disk is full"
        first = first.__cause__ or first.__context__
    return getattr(error, "strerror", None) or whole_reason_of(error)
