"""Work on foreign text, done in a forked child with limits of time and memory and without a network."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from vlmdoctor.errors import UserError
from vlmdoctor.plain_text import first_line

SECONDS = 30.0  # of wall clock, which passes on a busy machine
WORK = 8  # seconds of CPU time at most: loading the tokenizer of a large vocabulary takes two
MEMORY = 1 << 30  # bytes beside what the process has: the same takes half a gigabyte
MOST_ANSWER = 1 << 20  # bytes
# What no tokenizer, template or image processor needs: other machines, and other programs.
REFUSED = (
    "socket.",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
    "pty.spawn",
)


class OutOfBounds(UserError):
    """The child was stopped, or what it did failed; the message is what happened, without a full stop.

    Attributes:
        raised: Whether it is the message of a UserError, which has a subject of its own.
    """

    raised = False


def can_limit() -> bool:
    """Whether this system can fork, so that `limited` has an effect."""
    return hasattr(os, "fork")


def limited(work: Callable[[], Any], *, seconds: float = SECONDS, memory: int = MEMORY) -> Any:
    """What `work` returns, computed in a forked child that can't take longer or more; for JSON values.

    The child has what the parent has in memory, so that nothing is imported or loaded anew. It can't open
    a connection, start a program or write a file. Where the system can't fork, nothing is done.

    Args:
        work: Is called without arguments, in the child.
        seconds: Of wall clock, and (up to WORK) of CPU time.
        memory: Bytes of address space beside what the parent has.

    Raises:
        OutOfBounds: It took longer or more, was refused something, or raised.
    """
    if not can_limit():
        return None
    end, other = os.pipe()
    with warnings.catch_warnings():
        # The other threads of a notebook are not in the child: should it wait for one, its time runs out.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            child = os.fork()
        except OSError as error:
            os.close(end)
            os.close(other)
            raise OutOfBounds(f"no process could be started for it ({error.strerror})") from error
    if child == 0:
        _be_child(work, other, seconds, memory)
    os.close(other)
    try:
        content = _answer(end, seconds)
    finally:
        os.close(end)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    return _result(content, status, seconds, memory)


def _answer(end: int, seconds: float) -> bytes | None:
    """What the child wrote; None where it took too long."""
    deadline = time.monotonic() + seconds
    content = b""
    while len(content) <= MOST_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([end], [], [], left)[0]:
            return None
        more = os.read(end, 1 << 16)
        if not more:
            break
        content += more
    return content


def _result(content: bytes | None, status: int, seconds: float, memory: int) -> Any:
    if content is None:
        raise OutOfBounds(f"it took more than {seconds:g} s")
    try:
        answer = json.loads(content)
    except ValueError:
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if ended == signal.SIGXCPU:
            raise OutOfBounds(f"it took more than {min(seconds, WORK):g} s of work") from None
        reason = f"signal {ended}" if ended else f"exit status {os.WEXITSTATUS(status)}"
        raise OutOfBounds(
            f"it ended the process that tried it ({reason}; limit {memory / 2**30:.3g} GiB of memory)"
        ) from None
    if "raised" in answer:
        failed = OutOfBounds(answer["raised"])
        failed.raised = bool(answer.get("whole"))
        raise failed
    return answer["value"]


def _be_child(work: Callable[[], Any], end: int, seconds: float, memory: int) -> NoReturn:
    try:
        _prepare(seconds, memory)
        try:
            answer: dict[str, Any] = {"value": work()}
        except MemoryError:
            answer = {"raised": f"it took more than {memory / 2**30:.3g} GiB of memory"}
        except BaseException as error:
            answer = {"raised": first_line(error, 400)}
            answer["whole"] = isinstance(error, UserError)
        content = json.dumps(answer).encode()
        while content:
            content = content[os.write(end, content) :]
    finally:
        os._exit(0)  # nothing of the parent's is flushed, closed or cleaned up twice


def _prepare(seconds: float, memory: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    gc.disable()  # a collection would touch, and so copy, all that the parent holds
    sys.addaudithook(_refuse)
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # the parent's threads are not here
    _limit(seconds, memory)


def _limit(seconds: float, memory: int) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    bounds = {
        resource.RLIMIT_CPU: max(1, min(WORK, int(seconds) + 1)),
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    with contextlib.suppress(OSError, ValueError):  # no /proc: time alone is limited
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        bounds[resource.RLIMIT_AS] = pages * resource.getpagesize() + memory
    for kind, most in bounds.items():
        with contextlib.suppress(OSError, ValueError):
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(REFUSED) and event not in ("socket.__new__", "socket.gethostname"):
        raise PermissionError(f"it asks for {event}, which is refused")
