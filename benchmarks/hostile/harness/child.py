"""Inside the forked child: limits, streams, an audit hook, and then the command as its user starts it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import importlib
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.hostile.harness.trial import (
    CLOSED_ERR,
    CLOSED_IN,
    CLOSED_OUT,
    FULL_ERR,
    FULL_OUT,
    GONE,
    HOME,
    IN,
    TMP,
    Trial,
)

MEMORY = 2 << 30  # bytes of address space above what the interpreter has
LARGEST_FILE = 1 << 29
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG: it ends with the worker that forked it
_LOG = 200  # the descriptor of the log: out of the way of those that a command opens
_PLAIN_VARIABLES = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS"),
    "MPLCONFIGDIR",  # where matplotlib's list of fonts was made before, which takes seconds
)


def environment(trial: Trial, sandbox: Path) -> dict[str, str]:
    """The variables of a trial."""
    plain = {name: os.environ[name] for name in _PLAIN_VARIABLES if name in os.environ}
    plain |= {"HOME": str(sandbox / HOME), "TMPDIR": str(sandbox / TMP), "LANG": "C.UTF-8"}
    plain |= {"MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}
    changed = {**plain, **trial.env}
    return {name: value for name, value in changed.items() if value is not None}


def run_trial(trial: Trial, sandbox: Path, log: Path) -> NoReturn:
    """Never returns: the process ends with the status that the command's own process would have."""
    status = 70
    try:
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        os.setsid()
        _signals()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), _LOG)
        _streams(trial, log.parent)
        os.environ.clear()
        os.environ.update(environment(trial, sandbox))
        tempfile.tempdir = None
        random.seed(0)
        os.chdir(sandbox / IN)
        limit_resources()
        faulthandler.register(signal.SIGUSR1, file=_LOG, all_threads=False)
        # Semaphores of children are not the concern of the tracker that the worker shares with its parent.
        resource_tracker.register = resource_tracker.unregister = lambda *_: None  # type: ignore[assignment]
        sys.addaudithook(_hook(sandbox))
        if "--trust-remote-code" not in trial.argv:
            _set_traps()
        status = _ended(trial)
    except BaseException:
        os.write(_LOG, traceback.format_exc().encode(errors="backslashreplace"))
    finally:
        os._exit(status)


def _set_traps() -> None:
    """Ways to foreign code that would need a package or a connection that is not here: asking is enough."""
    from transformers import dynamic_module_utils
    from transformers.integrations import hub_kernels

    for module, name in (
        (hub_kernels, "load_and_register_attn_kernel"),
        (hub_kernels, "get_kernel"),
        (dynamic_module_utils, "get_class_from_dynamic_module"),
    ):
        setattr(module, name, _trap(name))


def _trap(name: str) -> Callable[..., NoReturn]:
    def trap(*arguments: Any, **_: Any) -> NoReturn:
        os.write(_LOG, f"event code {name}({arguments[:1]!a})\n".encode())
        raise ImportError(f"{name} is not to be reached")

    return trap


def limit_resources() -> None:
    """No more than MEMORY beyond what there is, no huge file, no core dump."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _streams(trial: Trial, folder: Path) -> None:
    """The descriptors, and Python's objects for them as a new interpreter makes them."""
    out, err = folder / "stdout", folder / "stderr"
    descriptors: dict[int, int | None] = {
        0: os.open(os.devnull, os.O_RDONLY),
        1: os.open(out, os.O_WRONLY | os.O_CREAT),
        2: os.open(err, os.O_WRONLY | os.O_CREAT),
    }
    for number, mode in ((1, FULL_OUT), (2, FULL_ERR)):
        if trial.streams == mode:
            descriptors[number] = os.open("/dev/full", os.O_WRONLY)
    if trial.streams == GONE:
        read, descriptors[1] = os.pipe()
        os.close(read)
    for number, mode in ((0, CLOSED_IN), (1, CLOSED_OUT), (2, CLOSED_ERR)):
        if trial.streams == mode:
            descriptors[number] = None
    for number, descriptor in descriptors.items():
        if descriptor is None:
            os.close(number)
        else:
            os.dup2(descriptor, number)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        stream = None
        if descriptors[number] is not None:
            errors = "backslashreplace" if number == 2 else "strict"
            stream = open(number, mode, encoding=trial.encoding, errors=errors, closefd=False)  # noqa: SIM115
            stream = _line_buffered(stream) if number == 2 else stream
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _line_buffered(stream: Any) -> Any:
    stream.reconfigure(line_buffering=True)
    return stream


def _ended(trial: Trial) -> int:
    """Runs it to the end of an interpreter; the exit status."""
    before = dict(sys.modules)
    status = _outcome(trial)
    for name in known_modules(before):
        if name.startswith(_WORTH_KEEPING):
            os.write(_LOG, f"module {name}\n".encode())
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except Exception as error:
            # What an interpreter does that can't write out what it holds.
            with contextlib.suppress(OSError):
                os.write(2, f"Exception ignored in: {error!r}\n".encode(errors="backslashreplace"))
            status = 120 if stream is sys.stdout else status
    return status


def _outcome(trial: Trial) -> int:
    try:
        if trial.fresh:
            os.execve(sys.executable, [sys.executable, "-m", "vlmdoctor", *trial.argv], dict(os.environ))
        if trial.call is not None:
            module, _, name = trial.call.partition(":")
            getattr(importlib.import_module(module), name)(trial.argument)
            return 0
        from vlmdoctor.cli.main import run

        sys.argv = ["vlmdoctor", *trial.argv]
        run()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        with contextlib.suppress(Exception):
            print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
        os.write(_LOG, traceback.format_exc().encode(errors="backslashreplace"))
        return 1
    return 0


# What the parent imports as well once one child has: it takes longer than all else that children do.
_WORTH_KEEPING = (
    "transformers.",
    "torch.",
    "vlmdoctor.",
    "minivlm.",
    "jinja2",
    "rich.",
    "pandas",
    "safetensors",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    *("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("shutil.rmtree", "os.chown", "os.utime", "os.setxattr"),
}
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile"}
_NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"}


def _hook(sandbox: Path) -> Any:
    inside = (str(sandbox), "/dev/", "/proc/self/")
    main = os.getpid()

    def log(text: str) -> None:
        os.write(_LOG, f"event {text}\n".encode(errors="backslashreplace"))

    def outside(path: Any) -> bool:
        if isinstance(path, int):
            return False
        try:
            return not os.path.abspath(os.fsdecode(path)).startswith(inside)  # noqa: PTH100
        except (TypeError, ValueError):
            return False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and outside(path):
                log(f"write {path!r}")
        elif event in _CHANGES and outside(arguments[0]):
            log(f"write {event} {arguments[0]!r}")
        elif event in _PROGRAMS:
            program = arguments[0] if isinstance(arguments[0], str | bytes) else arguments[1]
            if os.fsdecode(program or "") != sys.executable and os.getpid() == main:
                log(f"program {program!r}")
        elif event in _NETWORK:
            log(f"network {event} {arguments[-1]!r}")
            raise OSError(101, "Network is unreachable")

    return hook


def known_modules(before: Mapping[str, Any]) -> list[str]:
    """Modules that were imported since `before`, for the parent to import once for all children."""
    return [name for name in sys.modules if name not in before]
