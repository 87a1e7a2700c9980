"""Runs cases in processes of their own: each with a time limit, none can take the others down."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.detection.case import Case

if TYPE_CHECKING:
    from vlmdoctor.report import Report

TIMEOUT = 60.0  # seconds for one case
STARTING = 60.0  # seconds for a process to import torch and transformers
Outcome = dict[str, Any]
SHAPES = "shapes"  # the depth at which a case is built without weights, by the dry run of its factory


def run_all(
    names: list[str],
    jobs: int,
    timeout: float,
    told: Callable[[Outcome], None],
    depth: str | None = None,
) -> list[Outcome]:
    """The outcome of every named case, in the order of the names."""
    outcomes: dict[str, Outcome] = {}
    waiting = list(reversed(names))
    workers = [_Worker(depth) for _ in range(min(jobs, len(names)))]
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


def examine(case: Case, depth: str | None = None) -> Outcome:
    """Builds a case and examines it; with the depth `shapes`, as the dry run of a factory."""
    import torch

    started = time.process_time()
    base: Outcome = {"case": case.name, "family": case.family, "fault": case.fault}
    torch.manual_seed(0)
    built = started
    try:
        if depth == SHAPES:
            report = dry_run_of(case)
        else:
            subject = case.make()
            built = time.process_time()
            report = _checked(subject)
    except Exception as error:
        return {**base, "error": f"{type(error).__name__}: {_first_line(error)}"}
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


def _checked(subject: Any) -> Report:
    from vlmdoctor import check

    return check(subject)


def dry_run_of(case: Case) -> Report:
    """The report of `vlmdoctor check factory.py:build --depth shapes`, where `build` makes the case."""
    from vlmdoctor.dryrun.command import DryRunOptions, dry_run
    from vlmdoctor.examine import model_rules

    code = f"""from benchmarks.detection.corpus import by_name
def build():
    return by_name()[{case.name!r}].make()
"""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "factory.py"
        file.write_text(code, encoding="utf-8")
        return dry_run(
            f"{file}:build",
            DryRunOptions(),
            rules=model_rules(),
            trust_remote_code=False,
            fail_on="error",
            progress=lambda _: None,
        )


class _Worker:
    """A process that examines the cases that it is given, one by one."""

    def __init__(self, depth: str | None) -> None:
        self.depth = depth
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
        self.process = context.Process(target=_serve, args=(theirs, self.depth), daemon=True)
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


def _serve(connection: Connection, depth: str | None) -> None:
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
        connection.send(examine(cases[name], depth))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
