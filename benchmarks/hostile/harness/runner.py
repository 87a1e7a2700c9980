"""Hands trials to workers and collects what came of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.hostile.harness import worker
from benchmarks.hostile.harness.outcome import Outcome
from benchmarks.hostile.harness.registry import InputClass
from benchmarks.hostile.harness.trial import Trial

_LONGEST = 120.0  # seconds beyond a trial's own after which a worker itself counts as stuck


@dataclass(frozen=True)
class Result:
    """One input and what was wrong with its outcome.

    Attributes:
        reference: `class:index`, which `--only` takes.
        trial: The input.
        outcome: What was seen; None where the worker itself broke down.
        faults: Empty where all is well.
    """

    reference: str
    trial: Trial
    outcome: Outcome | None
    faults: tuple[str, ...]


Item = tuple[str, InputClass, Trial]


def run_all(items: Iterable[Item], jobs: int, seen: Callable[[Result], None]) -> None:
    """Runs every item in one of `jobs` workers; `seen` is called with each result as it comes."""
    scratch = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        _run_all(iter(items), [_Desk(scratch) for _ in range(jobs)], seen)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Desk:
    """A worker process and the item that it is at."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.item: Item | None = None
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=worker.main, args=(other, str(self.scratch)))
        self.process.start()
        other.close()
        self.ready = False

    def give(self, item: Item | None) -> None:
        self.item = item
        self.pipe.send(None if item is None else item[2])

    def stop(self) -> None:
        """Has it end by itself where it waits for work, and ends it where it is at something."""
        if self.pipe.closed:
            return
        if self.item is None:
            with contextlib.suppress(OSError):
                self.pipe.send(None)
            self.process.join(10)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _run_all(items: Iterator[Item], desks: list[_Desk], seen: Callable[[Result], None]) -> None:
    by_pipe: dict[Connection | Any, _Desk] = {desk.pipe: desk for desk in desks}
    try:
        while by_pipe:
            ready = wait(list(by_pipe), timeout=_LONGEST + 60)
            if not ready:
                raise RuntimeError(f"no worker answers: {[d.item and d.item[0] for d in desks]}")
            for pipe in ready:
                desk = by_pipe.pop(pipe)
                _take(desk, seen)
                item = next(items, None)
                if item is None:
                    desk.stop()
                    continue
                desk.give(item)
                by_pipe[desk.pipe] = desk
    finally:
        for desk in desks:
            desk.stop()


def _take(desk: _Desk, seen: Callable[[Result], None]) -> None:
    try:
        answer = desk.pipe.recv()
    except (EOFError, OSError):
        answer = None
    if desk.item is not None:
        reference, group, trial = desk.item
        faults = group.faults(trial, answer) if answer else ["worker: the process that forks was ended"]
        seen(Result(reference, trial, answer, tuple(faults)))
    if answer is None:
        desk.process.join()
        desk.pipe.close()
        desk.start()
        if desk.pipe.recv() != "ready":
            raise RuntimeError("a worker does not start")
    desk.item = None


def cores() -> int:
    """How many processes can run at once here."""
    return len(os.sched_getaffinity(0))
