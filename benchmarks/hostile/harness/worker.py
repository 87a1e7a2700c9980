"""A process that imports once and forks for every input: a fork costs milliseconds, an import seconds."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import os
import pickle
import re
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.hostile.harness import bases, child, traces
from benchmarks.hostile.harness.outcome import KEPT, Outcome
from benchmarks.hostile.harness.trial import BAIT, IN, OUT, Trial, materialise

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: what a child leaves running becomes a child of this process
_GRACE = 1.0  # seconds that what a command started has to end after it
_STILL = 0.4  # share of them after which a process that does nothing counts as waiting for ever
_PATIENCE = 6  # how many times the seconds of a trial may pass where others use the machine
# Commands whose imports are made once, before any input is run.
_WARM = (
    ("check-env", "--from", "nothing"),
    ("check", "minivlm:tiny", "--depth", "forward"),
    ("check", "minivlm:tiny", "--depth", "shapes"),
    ("look", "minivlm:tiny"),
    ("report", "nothing"),
)


def serve(pipe: Connection, scratch: str) -> None:
    """Runs the trials that come through `pipe` until None comes; answers each with an Outcome."""
    worker = Worker(Path(scratch))
    pipe.send("ready")
    while (trial := pipe.recv()) is not None:
        pipe.send(worker.run(trial))


class Worker:
    """Forks, waits, and looks at what is different."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = Path(tempfile.mkdtemp(dir=scratch))
        home = self.scratch / "home"
        home.mkdir()
        # Libraries note at import where their caches are.
        os.environ["HOME"] = str(home)
        os.environ["MPLCONFIGDIR"] = str(home)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        self._import_once()
        self.bases = bases.Bases(scratch)

    def _import_once(self) -> None:
        import torch

        torch.set_num_threads(1)
        import matplotlib.font_manager  # noqa: F401
        import transformers.integrations.hub_kernels  # noqa: F401

        import vlmdoctor.rulebook
        from vlmdoctor.cli.main import build_app

        vlmdoctor.rulebook.all_rules()
        build_app(None)
        for argv in _WARM:
            self._import(self._modules_of(argv))

    def _import(self, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    def _modules_of(self, argv: tuple[str, ...]) -> list[str]:
        """What a command imports, seen in a child so that nothing else of it stays here."""
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            before = dict(sys.modules)
            for number in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            with contextlib.suppress(BaseException):
                from vlmdoctor.cli.main import run

                sys.argv = ["vlmdoctor", *argv]
                run()
            with os.fdopen(write, "wb") as stream:
                pickle.dump(child.known_modules(before), stream)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as stream:
            names = pickle.load(stream)
        os.waitpid(pid, 0)
        return [name for name in names if not re.match(r"vlmdoctor_target|__", name)]

    def run(self, trial: Trial) -> Outcome:
        """The outcome of one trial, in a sandbox of its own that is gone afterwards."""
        place = Path(tempfile.mkdtemp(prefix="t", dir=self.scratch))
        sandbox, logs = place / "sandbox", place / "logs"
        sandbox.mkdir()
        logs.mkdir()
        try:
            materialise(trial, sandbox, self.bases)
            return self._run(trial, sandbox, logs)
        finally:
            subfolders = [path for path in sandbox.glob("*/*") if path.is_dir() and not path.is_symlink()]
            for folder in subfolders:
                with contextlib.suppress(OSError):
                    folder.chmod(0o755)
            shutil.rmtree(place, ignore_errors=True)

    def _run(self, trial: Trial, sandbox: Path, logs: Path) -> Outcome:
        before = traces.states(sandbox)
        traces.rearm(sandbox / BAIT)
        started = time.monotonic()
        pid = os.fork()
        if not pid:
            child.run_trial(trial, sandbox, logs / "log")
        ended = _wait(pid, trial.seconds)
        if not ended:
            _show_stack(pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        seconds = time.monotonic() - started
        left = _left_running(ended)
        log = (logs / "log").read_text(encoding="utf-8", errors="replace") if (logs / "log").exists() else ""
        own = _own_megabytes()
        self._import([line[7:] for line in log.splitlines() if line.startswith("module ")])
        return Outcome(
            status=os.waitstatus_to_exitcode(status) if ended else None,
            stdout=_head(logs / "stdout"),
            stderr=_head(logs / "stderr"),
            seconds=seconds,
            megabytes=max(0.0, usage.ru_maxrss / 1024 - (0 if trial.fresh else own)),
            read=traces.read_since(sandbox / BAIT),
            changed=traces.differences(before, traces.states(sandbox)),
            events=tuple(line[6:] for line in log.splitlines() if line.startswith("event ")),
            left_running=left,
            written=_written(trial, sandbox),
            stack=_shortened(
                "\n".join(line for line in log.splitlines() if not line.startswith(("event ", "module ")))
            ),
        )


def _wait(pid: int, seconds: float) -> bool:
    """Whether the process ended in time; it is not yet reaped.

    On a busy machine time passes without work: `seconds` are of work, or of waiting for something that
    does not come.
    """
    descriptor = os.pidfd_open(pid)
    started, still_since, worked = time.monotonic(), time.monotonic(), 0.0
    try:
        while not select.select([descriptor], [], [], 0.5)[0]:
            now, work = time.monotonic(), _work(pid)
            if work > worked + 0.02:
                still_since, worked = now, work
            if work > seconds or now - still_since > _STILL * seconds or now - started > _PATIENCE * seconds:
                return False
        return True
    finally:
        os.close(descriptor)


def _work(pid: int) -> float:
    """Seconds of work of a process and its children, of those that have ended as well."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(_work(int(child)) for child in children)


def _show_stack(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.2)


def _left_running(ended: bool) -> int:
    """Reaps what the command left; how many processes had to be ended."""
    deadline = time.monotonic() + (_GRACE if ended else 0.2)
    while _children():
        if time.monotonic() > deadline:
            left = list(_children())
            for pid in left:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            return len(left) if ended else 0
        time.sleep(0.01)
    return 0


def _children() -> list[int]:
    """Processes that are children of this one now, after those that ended were reaped."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    own = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in own.read_text().split()]


def _own_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(KEPT)
    except OSError:
        return b""


def _shortened(log: str) -> str:
    """Stacks and tracebacks of a log, without their middle where that is long."""
    text = "\n".join(line for line in log.splitlines() if not line.startswith(("event ", "module ")))
    return text if len(text) < 8000 else f"{text[:4000]}\n…\n{text[-4000:]}"


def _written(trial: Trial, sandbox: Path) -> bytes | None:
    for before, name in _pairs(trial.argv):
        if before == "--output-file":
            path = Path(os.path.normpath(sandbox / IN / name))
            if path.is_file() and path.is_relative_to(sandbox / OUT):
                return path.read_bytes()[: 10 * KEPT]
    return None


def _pairs(argv: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    return itertools.pairwise(argv)


def main(pipe: Any, scratch: str) -> None:
    """The entry point of a spawned process."""
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        serve(pipe, scratch)
