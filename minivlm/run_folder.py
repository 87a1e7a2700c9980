"""Which folder a run works in, from which checkpoint it goes on, and that no other run works there."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from minivlm import checkpoint
from minivlm.distributed import World
from minivlm.errors import UserError
from minivlm.lock import FolderInUse, FolderLock
from minivlm.newest import CHECKPOINTS, RUNS, newest_run
from minivlm.run import SUMMARY, has_run
from minivlm.train_config import TrainConfig

log = logging.getLogger("minivlm")


class RunFolder:
    """Chooses the run folder, and the checkpoint to resume from. The main process decides for all.

    Attributes:
        lock: In the main process, that of the folder once it is chosen.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.lock: FolderLock | None = None
        self._config = config
        self._unusable: list[Path] = []

    def choose(self, world: World) -> tuple[Path, Path | None]:
        """The folder, and the newest checkpoint that was not refused.

        Raises:
            UserError: There is a run already, none to resume, or another process at work in the folder.
        """
        decision: Any = None
        if world.is_main:
            try:
                decision = self._choose()
            except UserError as error:
                decision = UserError(str(error))
        (chosen, *_) = world.gather(decision)
        if isinstance(chosen, UserError):
            raise chosen
        return chosen

    def refuse(self, chosen: Path, error: checkpoint.BrokenCheckpoint) -> None:
        """A checkpoint turned out to be no use: the next choice is the one before.

        Raises:
            UserError: It is the one that the user named.
        """
        if self._named() is not None:
            raise UserError(f"checkpoint {chosen} is broken ({error}).") from error
        self._unusable.append(chosen)
        if self.lock is not None:
            log.warning("checkpoint %s is broken (%s); trying the one before.", chosen, error)

    def release(self) -> None:
        """Gives the folder back: nothing came of the run."""
        if self.lock is not None:
            self.lock.release(unused=True)

    def _named(self) -> Path | None:
        """The checkpoint that was named instead of its run."""
        out = None if self._config.out is None else Path(self._config.out)
        named = self._config.resume and out is not None and out.parent.name == checkpoint.FOLDER
        return out if named else None

    def _choose(self) -> tuple[Path, Path | None]:
        config, exact = self._config, self._named()
        if exact is not None:
            out = exact.parent.parent
        elif config.out is not None:
            out = Path(config.out)
        elif self.lock is not None:
            out = self.lock.folder
        elif config.resume and not config.names_a_run:
            out = _newest()
        else:
            out = self._free_folder()
        if out.exists() and not out.is_dir():
            raise UserError(f"the run folder {out} is a file; choose another with --out.")
        if config.resume and not out.is_dir():
            checkpoint.newest_usable(out, log.warning)  # which says that there is none
        if self.lock is None:
            self.lock = _locked(out)
        if config.resume:
            if exact is None:
                return out, checkpoint.newest_usable(out, log.warning, self._unusable)
            try:
                checkpoint.verify(exact)
            except checkpoint.BrokenCheckpoint as error:
                raise UserError(f"checkpoint {exact} is broken ({error}).") from error
            return out, exact
        if has_run(out) and not config.overwrite:
            raise UserError(f"there is a run in {out} already; give --resume, --overwrite, or another --out.")
        return out, None

    def _free_folder(self) -> Path:
        """The default one, locked where it is new: two runs that start together choose different ones."""
        while True:
            out = _default_folder(self._config)
            if self._config.resume or self._config.overwrite:
                return out
            try:
                self.lock = _locked(out)
            except FolderInUse:
                continue
            return out


def _newest() -> Path:
    folder = newest_run(CHECKPOINTS)
    if folder is None:
        raise UserError(
            f"there is no run with a checkpoint under {RUNS}/ to go on with; leave --resume out "
            "to start a new run."
        )
    print(f"minivlm: going on with {folder}, the newest run under {RUNS}/.", file=sys.stderr)
    return folder


def _locked(out: Path) -> FolderLock:
    try:
        return FolderLock.take(out)
    except FolderInUse:
        raise
    except OSError as error:
        raise UserError(
            f"the run folder {out} can't be written ({error.strerror}); choose another with --out."
        ) from error


def clear_the_way(out: Path, resume_from: Path | None) -> None:
    """Removes the run that is overwritten, or sets aside what lies after the checkpoint that is resumed."""
    checkpoint.remove_unfinished(out)
    if resume_from is not None:
        checkpoint.set_aside_after(out, checkpoint.step_of(resume_from))
        return
    shutil.rmtree(out / checkpoint.FOLDER, ignore_errors=True)
    for name in (checkpoint.LATEST, SUMMARY):
        (out / name).unlink(missing_ok=True)


def _default_folder(config: TrainConfig) -> Path:
    """`runs/tiny-digits`, then `runs/tiny-digits-2`: the first free one, or to resume, the last one used."""
    base = f"{config.preset}-{Path(config.data).stem}" + ("" if config.stage == "sft" else f"-{config.stage}")
    number, folder, last = 1, Path("runs") / base, Path("runs") / base
    while folder.exists():
        number, last = number + 1, folder
        folder = Path("runs") / f"{base}-{number}"
    return last if config.resume or config.overwrite else folder
