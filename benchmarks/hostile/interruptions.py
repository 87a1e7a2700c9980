"""Whether an interruption of `check` leaves a trace, or is swallowed: random moments, five kinds.

python -m benchmarks.hostile.interruptions              # 200 moments of each kind
python -m benchmarks.hostile.interruptions --moments 20 --kind two-sigint
"""

from __future__ import annotations

import argparse
import ctypes
import random
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.hostile.families_state.tiny import Tiny, subject
from benchmarks.hostile.fingerprint import changed, fingerprint
from vlmdoctor.subject import Subject

_PAUSES = random.Random(0)  # not the random state that is compared
KINDS = ("sigint", "two-sigint", "sigalrm", "sigterm", "memory-error")


class TimeIsUpError(Exception):
    """What a handler raises, as those of test runners and clusters do: an ordinary Exception."""


def victim() -> Subject:
    """A model with gradients, an optimizer that has stepped, a scheduler, a shadow, a generator and data."""

    class Victim(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.shadow, self.calls = {"a": torch.zeros(4)}, 0
            self.noise = torch.Generator().manual_seed(1)
            self.drop = torch.nn.Dropout(0.1)

        def touch(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.shadow["a"] += 1
            return self.drop(x + 0.01 * torch.randn(x.shape, generator=self.noise))

    made = subject(Victim())
    made.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(made.optimizer, lambda step: 0.9**step)
    made.train_dataset = [{"input_ids": [n % 20] * 6, "labels": [n % 20] * 6} for n in range(20)]
    made.data_collator = lambda rows: {n: torch.tensor([row[n] for row in rows]) for n in rows[0]}
    return made


@contextmanager
def _handled(number: int, raised: Callable[[], BaseException]) -> Iterator[None]:
    def handler(*_: Any) -> None:
        raise raised()

    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _sent(kind: str, after: float, done: threading.Event) -> None:
    if done.wait(after):
        return
    main = threading.main_thread().ident
    assert main is not None
    if kind == "memory-error":
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(MemoryError))
        return
    number = {"sigalrm": signal.SIGALRM, "sigterm": signal.SIGTERM}.get(kind, signal.SIGINT)
    signal.pthread_kill(main, number)
    if kind == "two-sigint" and not done.wait(_PAUSES.uniform(0.0001, 0.02)):
        signal.pthread_kill(main, number)


def interrupted(kind: str, after: float, made: Subject) -> tuple[str, list[str]]:
    """(`raised`, `swallowed` or `too late`, what differs) of a check interrupted after `after` seconds."""
    import vlmdoctor

    done = threading.Event()
    handlers = {
        "sigalrm": (signal.SIGALRM, TimeIsUpError),
        "sigterm": (signal.SIGTERM, SystemExit),
    }.get(kind, (signal.SIGINT, KeyboardInterrupt))
    what = "swallowed"
    sender = threading.Thread(target=_sent, args=(kind, after, done), daemon=True)
    with _handled(*handlers):
        before = fingerprint(made)
        try:
            sender.start()
            try:
                vlmdoctor.check(made)
                ended = time.monotonic()
            finally:
                was_late = sender.is_alive()
                done.set()
        except (KeyboardInterrupt, TimeIsUpError, SystemExit, MemoryError):
            what = "raised"
        else:
            what = "too late" if was_late else "swallowed"
            del ended
        for _ in range(3):
            try:
                sender.join()
            except (KeyboardInterrupt, TimeIsUpError, SystemExit, MemoryError):  # it was sent too late
                continue
        after_it = fingerprint(made)
    return what, [line for line in changed(before, after_it) if not line.startswith("process threads:")]


def _seconds(made: Subject) -> float:
    import vlmdoctor

    started = time.monotonic()
    vlmdoctor.check(made)
    return time.monotonic() - started


def main() -> int:
    """Prints how each kind ended, and what was changed; 1 where something was."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hostile.interruptions", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--kind", choices=KINDS, action="append")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    import vlmdoctor

    made = victim()
    vlmdoctor.check(made)  # imports are not what is interrupted
    lasts = min(_seconds(made) for _ in range(3))
    bad = 0
    for kind in given.kind or KINDS:
        ended: Counter[str] = Counter()
        traces: Counter[str] = Counter()
        touched = 0
        for _ in range(given.moments):
            made = victim()
            what, lines = interrupted(kind, random.uniform(0.001, lasts), made)
            ended[what] += 1
            touched += bool(lines)
            traces.update(line.partition(": ")[0] for line in lines)
        print(f"{kind}: {given.moments} moments, {touched} changed something; {dict(ended)}", flush=True)
        for where, times in traces.most_common(8):
            print(f"    {times} x {where}", flush=True)
        bad += touched
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
