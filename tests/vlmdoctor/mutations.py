"""Configurations with a few values changed to anything at all, and what a dry run of them must not do."""

from __future__ import annotations

import copy
import functools
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.detection.models import DECODERS, VLMS
from benchmarks.detection.shrink import tiny_config
from vlmdoctor.dryrun.command import DryRunOptions, dry_run
from vlmdoctor.errors import UserError
from vlmdoctor.examine import model_rules

FAMILIES = (*VLMS, *DECODERS)
SECONDS = 30.0  # of processor time, for one configuration
MOST_MEMORY = 1_500_000_000  # beyond what the process had before
REMOVED = "<removed>"

_NESTED = [[], [1], [[2, "a"], None], {}, {"a": {"b": [1, {"c": None}]}}, [{"image_size": 3}]]
_VALUES = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([0, -1, 1 << 20, 1 << 31, 1 << 40, 10**18, -(10**18), 1e18, 0.5, -0.5, 1e-30, 3.7]),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), None, True, False, REMOVED]),
    st.sampled_from(["", "odd", "12", "1e9", "gelu", "linear", "eager", "bfloat16", "\x00", "é" * 40]),
    st.sampled_from(_NESTED),
)


@functools.cache
def _values(family: str) -> str:
    return json.dumps(tiny_config(family).to_dict())


def _paths(values: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for name, value in items:
        yield (*prefix, name)
        if isinstance(value, dict) or (isinstance(value, list) and len(value) < 8):
            yield from _paths(value, (*prefix, name))


@st.composite
def mutated(draw: Any, families: tuple[str, ...] = FAMILIES) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(family, what was changed, the configuration)."""
    family = draw(st.sampled_from(families))
    values = json.loads(_values(family))
    changes: dict[str, Any] = {}
    paths = [path for path in _paths(values) if path[-1] not in ("architectures", "transformers_version")]
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths))
        place: Any = values
        for part in path[:-1]:
            try:
                place = place[part]
            except (KeyError, IndexError, TypeError):
                place = None
                break
        if not (
            isinstance(place, dict)
            or (isinstance(place, list) and type(path[-1]) is int and path[-1] < len(place))
        ):
            continue  # an earlier change took it away
        old = place[path[-1]] if isinstance(place, list) else place.get(path[-1])
        new = draw(_near(old) if type(old) is int and draw(st.booleans()) else _VALUES)
        if isinstance(new, str) and new == REMOVED:
            place.pop(path[-1]) if isinstance(place, list) else place.pop(path[-1], None)
        else:
            place[path[-1]] = copy.deepcopy(new)
        changes[".".join(map(str, path))] = new
    return family, changes, values


def _near(value: int) -> Any:
    """Numbers that may well be meant: off by one, doubled, halved."""
    return st.sampled_from([value + 1, value - 1, 2 * value, value // 2, 3 * value, -value])


class TookTooLong(BaseException):
    """Not an Exception, so that nothing takes it for one of the model's."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `TookTooLong` after so much processor time, where the platform can tell."""

    def stop(*_: Any) -> None:
        raise TookTooLong

    if not hasattr(signal, "SIGPROF") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _memory(reset: bool = False) -> int:
    """Bytes of memory: the most since the last reset; 0 where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


RULES = functools.cache(model_rules)


def outcome(folder: Path, values: dict[str, Any]) -> str:
    """`told`, `refused` or `judged`; anything else is a failure, in words."""
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    before = _memory(reset=True)
    try:
        with limited(SECONDS):
            report = dry_run(
                str(folder),
                DryRunOptions(),
                rules=RULES(),
                trust_remote_code=False,
                fail_on="error",
                progress=lambda _: None,
            )
    except UserError as error:
        text = str(error)
        if "\n" in text or len(text) > 600 or not text.endswith((".", "?")):
            return f"no clear sentence: {text[:900]!r}"
        return "refused"
    except TookTooLong:
        return f"took more than {SECONDS:g} s"
    except Exception as error:
        return f"traceback: {_traced(error)}"
    used = _memory() - before
    if used > MOST_MEMORY:
        return f"used {used / 1e9:.1f} GB"
    if report.crashed:
        return f"crashed: {report.crashed}"
    json.dumps(report.to_dict())
    return "told" if report.findings else "judged"


def _traced(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error)[-6:])
