"""What changed between two snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.probes.machine.saved import plain_facts

# What changes by itself from one minute to the next.
_RESTLESS = {"used", "free", "available", "shm_free", "processes", "throttle", "inodes", "origin", "pid"}
_LONGEST = 100


def differences(before: Environment, after: Environment) -> list[tuple[str, str, str]]:
    """(what, before, after) for everything that differs and does not change by itself all the time.

    What one of the two could not see is no difference.
    """
    unseen = {*before.unseen, *after.unseen, "unseen"}
    first, second = plain_facts(before), plain_facts(after)
    found: list[tuple[str, str, str]] = []
    for name in dict.fromkeys([*first, *second]):
        if name in unseen or name in _RESTLESS:
            continue
        found += _between(name, first.get(name), second.get(name))
    return found


def _between(name: str, before: Any, after: Any) -> Iterator[tuple[str, str, str]]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            if key not in _RESTLESS:
                yield from _between(f"{name} {key}", before.get(key), after.get(key))
    elif _objects(before) and _objects(after) and len(before) == len(after):
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _between(f"{name} {one.get('use', i)}", one, other)
    else:
        yield name, _shown(before), _shown(after)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _shown(value: Any) -> str:
    if value is None:
        return "not there"
    if _objects(value):
        value = [item.get("name") or item.get("path") or item.get("bus") or item for item in value]
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    text = str(value) if value != "" else '""'
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
