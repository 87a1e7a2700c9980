"""Runs cases in processes of their own: each with a time limit, none can take the others down."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.detection.case import Case

TIMEOUT = 60.0  # seconds for one case
STARTING = 60.0  # seconds for a process to import torch and transformers
Outcome = dict[str, Any]


def run_all(names: list[str], jobs: int, timeout: float, told: Callable[[Outcome], None]) -> list[Outcome]:
    """The outcome of every named case, in the order of the names."""
    outcomes: dict[str, Outcome] = {}
    waiting = list(reversed(names))
    workers = [_Worker() for _ in range(min(jobs, len(names)))]
    try:
        while len(outcomes) < len(names):
            for worker in workers:
                if worker.case is None and waiting:
                    worker.give(waiting.pop())
            for worker, outcome in _finished(workers, timeout):
                outcomes[outcome["case"]] = outcome
                told(outcome)
                worker.case = None
    finally:
        for worker in workers:
            worker.end()
    return [outcomes[name] for name in names]


def examine(case: Case) -> Outcome:
    """Builds a case and lets the doctor look at it."""
    import torch

    from vlmdoctor import check

    started = time.process_time()
    base: Outcome = {"case": case.name, "family": case.family, "fault": case.fault}
    torch.manual_seed(0)
    try:
        subject = case.make()
    except Exception as error:
        return {**base, "error": f"it could not be built ({type(error).__name__}: {_first_line(error)})"}
    built = time.process_time()
    try:
        report = check(subject)
    except Exception as error:
        return {**base, "error": f"check raised {type(error).__name__}: {_first_line(error)}"}
    told = report.to_dict()
    kept = ("rule", "code", "severity", "message", "at", "file", "cause", "symptoms", "proof")
    return {
        **base,
        "findings": [{key: finding.get(key) for key in kept} for finding in told["findings"]],
        "ran": len(told["ran"]),
        "skipped": told["skipped"],
        "crashed": told["crashed"],
        "built": round(built - started, 2),
        "seconds": round(time.process_time() - built, 2),
    }


class _Worker:
    """A process that examines the cases that it is given, one by one."""

    def __init__(self) -> None:
        self.case: str | None = None
        self.since = 0.0
        self.slack = STARTING
        self._start()

    def give(self, case: str) -> None:
        self.case, self.since = case, time.monotonic()
        self.connection.send(case)

    def overdue(self, timeout: float) -> bool:
        return self.case is not None and time.monotonic() - self.since > timeout + self.slack

    def restart(self) -> None:
        self.end()
        self.slack = STARTING
        self._start()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()


def _finished(workers: list[_Worker], timeout: float) -> Iterator[tuple[_Worker, Outcome]]:
    ready = wait([worker.connection for worker in workers if worker.case is not None], timeout=1.0)
    for worker in workers:
        if worker.case is None:
            continue
        if worker.connection in ready:
            try:
                outcome = worker.connection.recv()
                worker.slack = 0.0
            except EOFError:
                outcome = {"case": worker.case, "error": "its process died"}
                worker.restart()
            yield worker, outcome
        elif worker.overdue(timeout):
            case = worker.case
            worker.restart()
            yield worker, {"case": case, "error": f"it took more than {timeout:g} s"}


def _serve(connection: Connection) -> None:
    import logging
    import warnings

    import torch

    from benchmarks.detection.corpus import by_name

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    cases = by_name()
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        connection.send(examine(cases[name]))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
