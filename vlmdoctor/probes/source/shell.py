"""What shell and batch scripts and .env files set, by simple patterns of lines."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from vlmdoctor.evidence.source import Launch, OnCpu, Setting
from vlmdoctor.knowledge.visible_devices import VARIABLE
from vlmdoctor.knowledge.watched_variables import is_watched
from vlmdoctor.probes.source.files import is_test

MOST_CODE = 400  # characters of a line that are quoted
_VALUE = r"(\"[^\"]*\"|'[^']*'|[^\s;&|\"']*)"
_LEAD = re.compile(r"^\s*(?:export\s+|declare\s+-x\s+|set\s+-gx\s+|env\s+|sudo\s+|time\s+|nohup\s+)*")
_TOKEN = re.compile(rf"([A-Za-z_][A-Za-z0-9_-]*)={_VALUE}(?:\s+|(?=[;&|])|$)")
_SETENV = re.compile(rf"^\s*(?:setenv|set\s+-gx)\s+([A-Za-z_]\w*)\s+{_VALUE}\s*$")
_UNSET = re.compile(r"^\s*unset\s+(.+)$")
_SBATCH = re.compile(r"^#SBATCH\s+--export[= ](.*)$")
TRAINS = re.compile(r"train|finetune|fine_tune|\bsft\b|torchrun|accelerate\s+launch|deepspeed", re.IGNORECASE)
_OPENS, _CLOSES = re.compile(r"^\s*(if|case)\b"), re.compile(r"^\s*(fi|esac)\b")
_ON_CPU = re.compile(
    r"accelerate\s+launch\b.*\s--cpu\b"
    r"|\s--(?:no_cuda|use_cpu)(?:[ =](?:True|true|1))?(?=\s|$)|\s--device[ =]cpu\b"
)
_CHOICE = re.compile(r"\bdeepspeed\b.*?\s(--include|--exclude|--num_gpus)\b")
_STARTS = re.compile(r"\b(python\d?|torchrun|accelerate\s+launch|deepspeed)\s")


def in_shell(file: str, text: str) -> Iterator[Setting | OnCpu | Launch]:
    """Settings by export, setenv, in front of a command, by SBATCH, in .env files; starts on the CPU."""
    found: list[Setting] = []
    standing: list[Setting] = []
    conditions: list[str] = []
    lines = list(joined(text))
    launches = any(TRAINS.search(line) for _, line in lines) or bool(TRAINS.search(Path(file).name))
    for number, line in lines:
        if _OPENS.match(line):
            conditions.append(line.strip())
        elif _CLOSES.match(line) and conditions:
            conditions.pop()
        condition = conditions[-1] if conditions else None
        settings, command = assigned(line)
        code = line.strip()[:MOST_CODE]  # a file of continued lines is one line
        unset = _UNSET.match(line)
        for name in unset[1].split() if unset else ():
            if is_watched(name):
                found.append(
                    Setting(file=file, line=number, name=name, value=None, code=code, condition=condition)
                )
                standing.append(found[-1])
        # In front of a command the setting is for that command alone.
        alone = bool(settings and command) and "export" not in line.partition("=")[0]
        trains = bool(TRAINS.search(command)) if alone else launches
        for name, raw in settings:
            made = Setting(
                file=file, line=number, name=name, value=plain(raw), code=code, condition=condition
            )
            found.append(dataclasses.replace(made, trains=trains, uses_torch=trains))
            if not alone:
                standing.append(found[-1])
        in_force = [setting for setting in found if setting.line == number] if alone else standing
        yield from _started(file, number, command or line, condition, in_force)
    for i, setting in enumerate(found):
        later = (other for other in found[i + 1 :] if other.name == setting.name and other.condition is None)
        yield dataclasses.replace(setting, undone=any(later), in_tests=is_test(file))


def _started(
    file: str, number: int, command: str, condition: str | None, settings: list[Setting]
) -> Iterator[OnCpu | Launch]:
    if condition is not None or not _STARTS.search(command):
        return
    option = _ON_CPU.search(command)
    if option and TRAINS.search(command):
        what = (
            f"starts the training with{option[0]}"
            if option[0][0] == " "
            else "starts the training with --cpu"
        )
        yield OnCpu(file=file, line=number, what=what, code=command.strip()[:200], in_tests=is_test(file))
    choice = _CHOICE.search(command)
    last = next((s for s in reversed(settings) if s.name == VARIABLE and s.condition is None), None)
    if choice and last is not None and last.value:
        yield Launch(file=file, line=number, code=command.strip()[:200], option=choice[1], value=last.value)


def assigned(line: str) -> tuple[list[tuple[str, str]], str]:
    """(name, raw value) of the variables that a line sets, and the command that follows them."""
    setenv = _SETENV.match(line)
    if setenv and is_watched(setenv[1]):
        return [(setenv[1], setenv[2])], ""
    sbatch = _SBATCH.match(line)
    rest = sbatch[1].replace(",", " ") if sbatch else line[len(_LEAD.match(line)[0]) :]  # type: ignore[index]
    found = []
    while rest:
        token = _TOKEN.match(rest)
        if token is None:
            if not sbatch:
                break
            rest = rest.partition(" ")[2].lstrip()
            continue
        found.append((token[1], token[2]))
        rest = rest[token.end() :]
    if not found:
        return [], line.strip()
    return [(name, raw) for name, raw in found if is_watched(name)], rest.lstrip("; &|").strip()


def plain(raw: str) -> str | None:
    """The value without its quotes; None where it is put together at run time."""
    quoted = len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "\"'"
    value = raw[1:-1] if quoted else raw
    return None if ("$" in value and raw[:1] != "'") or "`" in value else value


def joined(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, line) with continued lines put together, without comments."""
    start = 0
    parts: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not parts:
            start = number
            if line.lstrip().startswith("#") and not line.startswith("#SBATCH"):
                continue
        if line.rstrip().endswith("\\"):
            parts.append(line.rstrip()[:-1])
            continue
        yield start, " ".join([*parts, line])
        parts = []
    if parts:
        yield start, " ".join(parts)
