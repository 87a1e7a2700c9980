"""Whether a command behaved: what is wrong with an outcome, as short texts that group failures by kind."""

from __future__ import annotations

import fnmatch
import json
import re
import signal
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

from benchmarks.hostile.harness.outcome import KEPT, Outcome
from benchmarks.hostile.harness.trial import (
    CANARY,
    CLOSED_ERR,
    CLOSED_OUT,
    FULL_ERR,
    FULL_OUT,
    GONE,
    Link,
    Trial,
)

MOST_MEGABYTES = 1500.0
MOST_WORDS = 1500  # characters of a sentence, beside what it repeats of the command line
SHOWN = 160

# C0 but tab and new line, C1, the marks that turn or hide text, separators of lines, lone surrogates.
_UNPLAIN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_COLOURS = re.compile("\x1b\\[[0-9;]*m|\x1b\\]8;[^\x1b\x07]*(?:\x1b\\\\|\x07)")
_COMMANDS = (
    "add-mask|stop-commands|group|endgroup|debug|warning|error|notice|set-env|set-output|save-state|add-path|"
    "echo|add-matcher|remove-matcher|internal-set-repo-path"
)
# GitHub's runner takes the older form from anywhere in a line.
_OLD_COMMAND = re.compile(rf"##\[(?:{_COMMANDS})[ \]]", re.IGNORECASE)
_COMMAND = re.compile(r"(?m)^\s*::[A-Za-z].*$")
_OWN_ANNOTATION = re.compile(r"::(?:error|warning|notice) [^\n]*::")
_FRAME = re.compile(r'File "[^"]*?((?:vlmdoctor|minivlm|benchmarks)/[^"]*)", line (\d+)(?:,? in (\w+))?')
_STATUSES = (0, 1, 2)


def faults(trial: Trial, outcome: Outcome) -> list[str]:
    """What is wrong; the part before the first colon is the kind. Empty where nothing is."""
    return [*_ending(trial, outcome), *_deeds(trial, outcome), *_texts(trial, outcome)]


def _ending(trial: Trial, outcome: Outcome) -> Iterator[str]:
    stderr = outcome.stderr.decode("utf-8", "replace")
    if outcome.status is None:
        yield f"hung: {_place(outcome.stack)}"
        return
    if outcome.status < 0:
        yield f"killed by {signal.Signals(-outcome.status).name}: {_place(outcome.stack)}"
        return
    own = "fault of vlmdoctor itself" in stderr
    if own:
        yield f"traceback: a fault of its own, {_raised(stderr)} {_place(stderr)}"
    elif "Traceback (most recent call last)" in stderr and not (trial.verbose and outcome.status == 2):
        yield f"traceback: {_raised(stderr)} {_place(stderr)}"
    if outcome.status not in _STATUSES:
        yield f"status: {outcome.status} {_raised(outcome.stack)} {_place(outcome.stack)}"
    if outcome.megabytes > MOST_MEGABYTES:
        yield f"memory: more than {MOST_MEGABYTES:.0f} MB {_place(outcome.stack)}"
    if outcome.status == 2 and not own and trial.call is None:
        yield from _message(trial, outcome, _COLOURS.sub("", stderr))


def _message(trial: Trial, outcome: Outcome, stderr: str) -> Iterator[str]:
    """Status 2 comes with one sentence; where a report was made, it is the report that says why."""
    if trial.streams in (CLOSED_ERR, FULL_ERR, GONE):
        return
    lines = [line for line in stderr.splitlines() if line.strip()]
    if any(line.lstrip().startswith(("Usage:", "Error: ")) for line in lines):
        return  # the command line's own way of saying what is wrong with it
    own = [number for number, line in enumerate(lines) if line.startswith("vlmdoctor: ")]
    if not own and (outcome.stdout.strip() or outcome.written):
        return
    if not lines:
        yield "message: none on standard error"
    elif not own:
        yield f"message: not a sentence of its own, {_short(lines[-1])}"
    elif trial.verbose:
        return
    elif own[-1] != len(lines) - 1:
        yield f"message: more lines after it, {_short(lines[own[-1] + 1])}"
    elif len(lines[own[-1]]) > MOST_WORDS + 3 * sum(map(len, trial.argv)):
        yield f"message: {len(lines[own[-1]])} characters, {_short(lines[own[-1]])}"


def _deeds(trial: Trial, outcome: Outcome) -> Iterator[str]:
    for path, how in outcome.changed:
        name = PurePosixPath(path).name
        if name.startswith(CANARY):
            yield f"executed: {path}"
        elif not any(fnmatch.fnmatch(path, pattern) for pattern in trial.may_change):
            yield f"changed: {path.split('/')[0]}/{_without_digits(name)} was {how}"
        elif how == "added" and path.startswith("out/") and _unfinished(name):
            yield f"left: {_without_digits(name)}"
    # Links to regular files are followed: caches of downloads consist of them.
    linked = {Path(c.target).name for c in trial.files.values() if isinstance(c, Link)}
    for name in (name for name in outcome.read if name not in linked):
        yield f"read: {name}, which is outside of what was given"
    for event in sorted(set(outcome.events)):
        yield f"{event.partition(' ')[0]}: {_short(event.partition(' ')[2])}"
    if outcome.left_running:
        yield f"left running: {outcome.left_running}"


def _unfinished(name: str) -> bool:
    return name.startswith(".") or name.endswith((".part", ".tmp"))


def _texts(trial: Trial, outcome: Outcome) -> Iterator[str]:
    if outcome.status is None or trial.call is not None:
        return
    told = {"stdout": outcome.stdout, "stderr": outcome.stderr}
    if outcome.written is not None:
        told["the file"] = outcome.written
    for place, data in told.items():
        try:
            text = data.decode("utf-8") if len(data) < KEPT else data.decode("utf-8", "ignore")
        except UnicodeDecodeError:
            if trial.encoding == "utf-8":
                yield f"not UTF-8: {place} in {trial.output_format}"
            text = data.decode("utf-8" if trial.encoding == "utf-8" else trial.encoding, "replace")
        yield from _foreign(trial, place, text)
    report = outcome.written if outcome.written is not None else outcome.stdout
    asked = (
        trial.streams not in (CLOSED_OUT, FULL_OUT, GONE) and len(report) < KEPT and trial.encoding == "utf-8"
    )
    if asked and report and outcome.status in (0, 1, 2) and "--help" not in trial.argv:
        yield from _well_formed(trial, report.decode("utf-8", "replace"))


def _foreign(trial: Trial, place: str, text: str) -> Iterator[str]:
    if trial.env.get("FORCE_COLOR") or trial.env.get("CLICOLOR_FORCE"):
        text = _COLOURS.sub("", text)
    found = _UNPLAIN.search(text)
    if found:
        yield f"unplain: {found[0]!r} on {place} in {trial.output_format}"
    if trial.env.get("GITHUB_ACTIONS") and place != "the file":
        old = _OLD_COMMAND.search(text)
        if old:
            yield f"command: {old[0]} on {place} in {trial.output_format}"
        for line in _COMMAND.findall(text):
            own = trial.output_format == "github" and _OWN_ANNOTATION.match(line)
            if not own:
                yield f"command: {_short(line.strip(), 24)} on {place} in {trial.output_format}"
                break


def _well_formed(trial: Trial, text: str) -> Iterator[str]:
    form = trial.output_format
    try:
        if form in ("json", "sarif"):
            read = json.loads(text, parse_constant=_refuse)
            json.dumps(read, ensure_ascii=False).encode("utf-8")
            crashed = read.get("crashed") if isinstance(read, dict) else None
            for one in crashed or ():
                yield f"crashed: {one['rule']}, {_short(one['error'])}"
        elif form == "junit":
            ElementTree.fromstring(text)
        elif form == "html":
            page = _Page()
            page.feed(text)
            if page.found:
                yield f"script: {_short(page.found[0])} in html"
    except (ValueError, ElementTree.ParseError, RecursionError, KeyError, TypeError) as error:
        yield f"malformed: {form}, {type(error).__name__}: {_short(str(error), 60)}"
    if form == "full" and (found := re.search(r"(\d+) crashed \(([^)]*)\)", text)):
        yield f"crashed: {_short(found[2])}"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class _Page(HTMLParser):
    """Looks for what a browser would run or load of foreign text; payloads carry the word `hostile`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            runs = name.startswith("on") or (name in ("src", "href") and _loads(value or ""))
            if runs and ("hostile" in (value or "")):
                self.found.append(f"<{tag} {name}={value!r}>")
        if tag in ("script", "iframe", "object", "embed", "base", "meta", "form", "svg") and any(
            "hostile" in (value or "") for _, value in attrs
        ):
            self.found.append(f"<{tag}>")
        self.tag = tag

    def handle_data(self, data: str) -> None:
        if getattr(self, "tag", "") in ("script", "style") and "hostile" in data:
            self.found.append(f"<{self.tag}>{data[:40]}")

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""


def _loads(value: str) -> bool:
    return value.strip().lower().startswith(("javascript:", "http:", "https:", "data:text", "//"))


def _raised(text: str) -> str:
    """The type of the last exception in a traceback."""
    names = re.findall(
        r"(?m)^(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt|Exit|Abort|Warning|Iteration))\b", text
    )
    return names[-1] if names else ""


def _place(stack: str) -> str:
    """The innermost frame of this project's code in a traceback or a stack."""
    frames = [f for f in _FRAME.findall(stack) if "hostile/harness" not in f[0] and "cli/main" not in f[0]]
    if not frames:
        return ""
    # faulthandler shows the innermost frame first, a traceback last.
    path, line, name = frames[0] if "most recent call first" in stack else frames[-1]
    return f"at {path}:{line} {name}".strip()


def _short(text: str, most: int = SHOWN) -> str:
    plain = text.encode("unicode_escape").decode("ascii")
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def _without_digits(name: str) -> str:
    return re.sub(r"[0-9a-z_]{8}(?=$|\.)|\d+", "#", _short(name, 60))


def kind(fault: str) -> str:
    """What failures are counted by."""
    return fault.partition(":")[0]
