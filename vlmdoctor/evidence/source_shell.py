"""Settings of GPU variables in shell scripts, .env files and Dockerfiles, by simple patterns of lines."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from vlmdoctor.evidence.environment import VARIABLES
from vlmdoctor.evidence.source import Setting, is_test

_NAMES = "|".join(VARIABLES)
_VALUE = r"(\"[^\"]*\"|'[^']*'|[^\s;&|\"']*)"
_ASSIGNED = re.compile(
    rf"^\s*(?:export\s+|declare\s+-x\s+|set\s+-gx\s+|env\s+)?(?:\w+=\S*\s+)*({_NAMES})={_VALUE}(.*)$"
)
_SETENV = re.compile(rf"^\s*(?:setenv|set\s+-gx)\s+({_NAMES})\s+{_VALUE}()\s*$")
_DOCKER = re.compile(rf"^\s*ENV\s+(?:.*\s)?({_NAMES})(?:=|\s+){_VALUE}(.*)$", re.IGNORECASE)
_UNSET = re.compile(rf"^\s*unset\s+(?:\S+\s+)*({_NAMES})\b")
_TRAINS = re.compile(
    r"train|finetune|fine_tune|\bsft\b|torchrun|accelerate\s+launch|deepspeed", re.IGNORECASE
)
_OPENS, _CLOSES = re.compile(r"^\s*(if|case)\b"), re.compile(r"^\s*(fi|esac)\b")


def settings_in_shell(file: str, text: str) -> Iterator[Setting]:
    """Settings by export, setenv, in front of a command, and in .env files."""
    found: list[Setting] = []
    conditions: list[str] = []
    body = _without_comments(text)
    launches = bool(_TRAINS.search(body)) or bool(_TRAINS.search(Path(file).name))
    for number, line in enumerate(body.splitlines(), start=1):
        if _OPENS.match(line):
            conditions.append(line.strip())
        elif _CLOSES.match(line) and conditions:
            conditions.pop()
        condition = conditions[-1] if conditions else None
        unset = _UNSET.match(line)
        if unset:
            found.append(Setting(file, number, unset[1], None, line.strip(), condition=condition))
        match = _ASSIGNED.match(line) or _SETENV.match(line)
        if match:
            command = match[3].strip().removeprefix(";").strip()
            # In front of a command the setting is for that command alone.
            trains = bool(_TRAINS.search(command)) if command and "export" not in line else launches
            setting = _setting(file, number, match, line)
            found.append(dataclasses.replace(setting, condition=condition, trains=trains, uses_torch=trains))
    for i, setting in enumerate(found):
        later = (other for other in found[i + 1 :] if other.name == setting.name and other.condition is None)
        yield dataclasses.replace(setting, undone=any(later), in_tests=is_test(file))


def settings_in_dockerfile(file: str, text: str) -> Iterator[Setting]:
    """Settings by ENV."""
    for number, line in enumerate(_without_comments(text).splitlines(), start=1):
        match = _DOCKER.match(line)
        if match:
            yield dataclasses.replace(_setting(file, number, match, line), uses_torch=True)


def _setting(file: str, number: int, match: re.Match[str], line: str) -> Setting:
    raw = match[2]
    quoted = len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "\"'"
    value = raw[1:-1] if quoted else raw
    return Setting(file, number, match[1], None if "$" in value or "`" in value else value, line.strip())


def _without_comments(text: str) -> str:
    return "\n".join("" if line.lstrip().startswith("#") else line for line in text.splitlines())
