"""Runs the tools on cases, each in its own environment, and keeps what they said."""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.detection.corpus import by_name
from benchmarks.detection.rivals.environments import ROOT, python_of
from benchmarks.detection.rivals.rival import NAMES, Said, rival

RECORD = Path(__file__).with_name("record.json")
TIMEOUT = 180.0  # seconds for one case, the start of the process included
Record = dict[str, dict[str, Any]]  # tool -> case -> answer


def run_rivals(
    names: list[str], folder: Path, tools: list[str], jobs: int, told: Callable[[str, dict[str, Any]], None]
) -> None:
    """Runs `tools` on the cases with these names, and puts what they said into the record."""
    pythons = {tool: python_of(rival(tool), folder) for tool in tools}
    record = read_record()
    writing = threading.Lock()

    def all_cases(tool: str) -> None:
        worker = _Worker(tool, pythons[tool])
        answers = record.setdefault(tool, {})
        try:
            for name in names:
                answer = worker.ask(name)
                twin = _healthy_twin(name)
                usual = _words(worker.ask(twin)) if twin else set()
                answers[name] = _kept(tool, answer, usual)
                told(tool, answer)
                with writing:
                    _write(record)
        finally:
            worker.end()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(all_cases, tools))


def read_record() -> Record:
    """What the tools said when they were last run."""
    record: Record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return {tool: record.get(tool, {}) for tool in NAMES}


def _healthy_twin(name: str) -> str | None:
    """The healthy case of the same family; None for a case that is healthy itself."""
    cases = by_name()
    if cases[name].fault is None:
        return None
    plain = [c.name for c in cases.values() if c.family == cases[name].family and "variant/" not in c.name]
    return next((other for other in plain if cases[other].fault is None), None)


def _words(answer: dict[str, Any]) -> set[tuple[str, ...]]:
    return {tuple(one) for one in answer.get("said", ())}


def _kept(tool: str, answer: dict[str, Any], usual: set[tuple[str, ...]]) -> dict[str, Any]:
    """An answer in short: each alarm as `severity check = rules of the same meaning`.

    What the tool says word for word of the healthy model too (`usual`) says nothing of the fault.
    """
    if "error" in answer:
        return {"error": answer["error"]}
    said = [Said(check, severity, message) for severity, check, message in _words(answer) - usual]
    alarms = [f"{one.severity} {one.check} = {' '.join(rival(tool).names(one))}".rstrip() for one in said]
    return {"alarms": sorted(alarms), "seconds": answer["seconds"]}


def _write(record: Record) -> None:
    lines = []
    for tool, answers in sorted(record.items()):
        rows = [f"  {json.dumps(name)}: {json.dumps(answer)}" for name, answer in sorted(answers.items())]
        lines.append(f" {json.dumps(tool)}: {{\n" + ",\n".join(rows) + "\n }")
    part = RECORD.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    part.replace(RECORD)


class _Worker:
    """A process in a tool's environment; a new one after a case that took too long or took it down."""

    def __init__(self, tool: str, python: Path) -> None:
        self.tool, self.python = tool, python
        self.answered: dict[str, dict[str, Any]] = {}
        self._start()

    def ask(self, name: str) -> dict[str, Any]:
        """What the tool says of a case; each is asked for once."""
        if name not in self.answered:
            self.answered[name] = self._asked(name)
        return self.answered[name]

    def _asked(self, name: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if answer is not None:
            return answer
        ended = self.process.poll() is not None
        self.end()
        self._start()
        return {"case": name, "error": "its process died" if ended else f"it took more than {TIMEOUT:g} s"}

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [str(self.python), "-m", "benchmarks.detection.rivals.serve", self.tool],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._answer() is None:
            self.end()
            raise SystemExit(f"{self.tool} does not start in {self.python}: its error is above")

    def _answer(self) -> dict[str, Any] | None:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        line = self.process.stdout.readline() if ready else ""
        return json.loads(line) if line else None
