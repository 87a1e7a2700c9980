"""What is printed: failures by kind with the command that repeats each, and tried and failed by class."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from benchmarks.hostile.harness.judge import kind
from benchmarks.hostile.harness.runner import Result
from benchmarks.hostile.harness.trial import Trial

# The gravest first; kinds of classes' own judges come between these and the rest.
_GRAVEST = (
    *(
        "executed",
        "code",
        "network",
        "program",
        "write",
        "changed",
        "lost",
        "read",
        "hung",
        "memory",
        "killed by",
    ),
    *("left running", "left", "script", "command", "unplain", "traceback", "status", "crashed", "malformed"),
    *("not UTF-8", "message"),
)
_REFERENCES = 6  # of one failure that are shown


def failures(results: Iterable[Result], seed: int) -> str:
    """Every failure once, however many inputs had it, gravest first."""
    found: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        for fault in result.faults:
            found[_alike(fault)].append(result)
    lines = []
    for fault in sorted(found, key=lambda f: (_gravity(f), -len(found[f]), f)):
        inputs = found[fault]
        shown = ", ".join(result.reference for result in inputs[:_REFERENCES])
        lines.append(
            f"{fault}\n    {len(inputs)} inputs: {shown}{', …' if len(inputs) > _REFERENCES else ''}"
        )
        lines.append(f"    vlmdoctor {' '.join(_short(a) for a in inputs[0].trial.argv)}")
        lines.append(f"    python -m benchmarks.hostile --seed {seed} --only {inputs[0].reference}")
    return "\n".join(lines)


def _alike(fault: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\b\d{4,}\b|hostile-\w+/\w+/\w+", "#", fault)


def _gravity(fault: str) -> int:
    found = kind(fault)
    places = [i for i, name in enumerate(_GRAVEST) if found.startswith(name)]
    return places[0] if places else 6


def table(results: Iterable[Result], seconds: float) -> str:
    """Tried and failed by class, and the kinds of failures of each."""
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    took: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        name = result.reference.partition(":")[0]
        tried[name] += 1
        failed[name] += bool(result.faults)
        took[name] += result.outcome.seconds if result.outcome else 0  # type: ignore[assignment]
        kinds[name].update({kind(fault) for fault in result.faults})
    lines = ["", f"{'class':12} {'tried':>6} {'failed':>6} {'s each':>6}  kinds"]
    for name in sorted(tried):
        shown = ", ".join(f"{one} {count}" for one, count in kinds[name].most_common())
        lines.append(f"{name:12} {tried[name]:6} {failed[name]:6} {took[name] / tried[name]:6.2f}  {shown}")
    lines.append(f"{'all':12} {tried.total():6} {failed.total():6}         in {seconds:.0f} s")
    return "\n".join(lines)


def show(result: Result) -> str:
    """One input with all that is known of it."""
    trial, outcome = result.trial, result.outcome
    lines = [f"{result.reference}: {trial.what}", f"  argv    {list(trial.argv)!a}"]
    lines += [f"  env     {name}={value!a}" for name, value in trial.env.items()]
    lines += [f"  file    {name!a}: {_content(content)}" for name, content in trial.files.items()]
    lines += [f"  streams {trial.streams}, {trial.encoding}"]
    if outcome is not None:
        lines.append(f"  status  {outcome.status} after {outcome.seconds:.2f} s, {outcome.megabytes:.0f} MB")
        lines += [f"  changed {path!a} was {how}" for path, how in outcome.changed]
        lines += [f"  event   {event!a}" for event in outcome.events]
        for name, data in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
            lines += [f"  {name}  {line!a}" for line in data[:8000].split(b"\n")]
        lines += [f"  stack   {line}" for line in outcome.stack.splitlines()]
    lines += [f"  FAILED  {fault}" for fault in result.faults] or ["  all is well"]
    return "\n".join(lines)


def document(results: Iterable[Result], seed: int) -> dict[str, Any]:
    """The failures as JSON."""
    rows = list(results)
    failed = [
        {
            "input": result.reference,
            "what": result.trial.what,
            "argv": [_plain(argument) for argument in result.trial.argv],
            "faults": list(result.faults),
            "stderr": result.outcome.stderr[-4000:].decode("utf-8", "replace") if result.outcome else None,
        }
        for result in rows
        if result.faults
    ]
    slowest = sorted(rows, key=lambda r: -(r.outcome.seconds if r.outcome else 0))[:20]
    return {
        "seed": seed,
        "tried": dict(_tried(rows)),
        "slowest": {r.reference: round(r.outcome.seconds, 1) for r in slowest if r.outcome},
        "failed": failed,
    }


def _tried(results: Iterable[Result]) -> Counter[str]:
    return Counter(result.reference.partition(":")[0] for result in results)


def _content(content: Any) -> str:
    if isinstance(content, bytes):
        shown = ascii(content[:300])
        return shown if len(content) <= 300 else f"{shown}… ({len(content)} bytes)"
    return repr(content)


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _short(text: str) -> str:
    plain = ascii(text) if not text.isascii() or not text.isprintable() or " " in text or not text else text
    return plain if len(plain) <= 60 else f"{plain[:59]}…"


def command(trial: Trial) -> str:
    """The command line in words for a message."""
    return " ".join(["vlmdoctor", *map(_short, trial.argv)])
