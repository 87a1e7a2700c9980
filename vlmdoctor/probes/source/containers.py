"""What Dockerfiles and compose files set, by simple patterns of lines."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from vlmdoctor.evidence.source import Setting
from vlmdoctor.knowledge.watched_variables import is_watched
from vlmdoctor.probes.source.shell import assigned, joined, plain

_ENV = re.compile(r"^\s*ENV\s+(.*)$", re.IGNORECASE)
_SPACED = re.compile(r"^([A-Za-z_]\w*)\s+(.*)$")
_ITEM = re.compile(r"^\s*-\s*(\"?'?)([A-Za-z_][\w-]*)=(.*?)\1\s*(?:#.*)?$")
_PAIR = re.compile(r"^\s*([A-Za-z_][\w-]*)\s*:\s*(.*?)\s*$")


def in_dockerfile(file: str, text: str) -> Iterator[Setting]:
    """Settings by ENV."""
    for number, line in joined(text):
        match = _ENV.match(line)
        if not match:
            continue
        settings, _ = assigned(match[1])
        spaced = _SPACED.match(match[1])
        if not settings and spaced and "=" not in spaced[1] and is_watched(spaced[1]):
            settings = [(spaced[1], spaced[2].strip())]
        for name, raw in settings:
            yield Setting(
                file=file, line=number, name=name, value=plain(raw), code=line.strip(), uses_torch=True
            )


def in_compose(file: str, text: str) -> Iterator[Setting]:
    """Settings under `environment:`, as a list or as a mapping."""
    inside = -1
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.split(" #")[0].rstrip()
        if not bare.strip() or bare.lstrip().startswith("#"):
            continue
        indent = len(bare) - len(bare.lstrip())
        if inside >= 0 and (indent < inside or (indent == inside and not bare.lstrip().startswith("-"))):
            inside = -1
        if re.match(r"^\s*environment\s*:\s*$", bare):
            inside = indent
            continue
        if inside < 0:
            continue
        item, pair = _ITEM.match(bare), _PAIR.match(bare)
        if item and is_watched(item[2]):
            # In the list the value is taken as it stands, quotes and all.
            value = None if "$" in item[3] else item[3]
            yield _setting(file, number, item[2], value, line)
        elif pair and is_watched(pair[1]):
            # Without a value the variable is taken from the shell that starts it.
            yield _setting(file, number, pair[1], plain(pair[2]) if pair[2] else None, line)


def _setting(file: str, number: int, name: str, value: str | None, line: str) -> Setting:
    return dataclasses.replace(
        Setting(file=file, line=number, name=name, value=value, code=line.strip()), uses_torch=True
    )
