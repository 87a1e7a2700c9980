"""What a rule has to say: one fault, where it is, what was measured, why, and how to fix it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vlmdoctor.plain_text import plain_line, plain_lines, plain_values


class Severity(StrEnum):
    """How bad it is. `error` means that the run can't do what it is meant to, measured and not guessed."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """0 for info, 1 for warning, 2 for error: `StrEnum` itself would compare the words."""
        return list(Severity).index(self)


class Certainty(StrEnum):
    """How it is known why a finding holds; that it holds is measured in any case."""

    MEASURED = "measured"  # what was measured leaves no other cause, or none was given
    PROVEN = "proven"  # the fix was tried and the fault was gone
    INFERRED = "inferred"  # the likely one of several


class Inferred(str):
    """A cause that is only inferred; a finding with it is `Certainty.INFERRED`."""


@dataclass(frozen=True)
class Fix:
    """How to fix it: a sentence, and lines to paste (code or shell commands).

    Attributes:
        text: What to do, in one sentence.
        commands: Lines to paste.
        tried: Whether these very lines were run on a copy, and helped; else they are a pattern, in which
            names may differ from the user's.
    """

    text: str
    commands: tuple[str, ...] = ()
    tried: bool = False

    def __post_init__(self) -> None:
        _make_plain(self, text=plain_line(self.text), commands=tuple(map(plain_lines, self.commands)))


@dataclass(frozen=True)
class Proof:
    """A fix that was tried on a copy, with the same measurement before and after it.

    Attributes:
        tried: What was done, in words that fit behind "with".
        before: What was measured without it.
        after: What was measured with it.
        works: Whether the fault was gone then: only if so is the cause proven.
    """

    tried: str
    before: str
    after: str
    works: bool = True

    def __post_init__(self) -> None:
        words = (plain_line(self.tried), plain_line(self.before), plain_line(self.after))
        _make_plain(self, tried=words[0], before=words[1], after=words[2])


@dataclass(frozen=True)
class Finding:
    """One fault. Every text in it is made plain when it is made, `parameters` excepted.

    Attributes:
        message: One line in the user's terms, without a full stop.
        severity: `error`, `warning` or `info`.
        at: Where: parameters, modules, token positions, environment variables, packages.
        file: A source file, where the fault has one.
        line: The line in `file`, counted from 1.
        source: The text of that line; read by the engine where the file is there.
        measured: What was measured, as plain values.
        threshold: What was expected, as plain values.
        cause: Why it happens; says so when it is inferred and not proven.
        certainty: How that is known.
        proof: The fix that was tried, if one was.
        fix: What to do.
        links: Pages that say more, beside those that the rule's own page links to, which the engine adds.
        step: The first optimizer step at which it held, for findings about a run.
        symptoms: Messages of other findings that this one explains, folded under it.
        parameters: Canonical names of all the parameters that it is about, for trying the fix; not part
            of the report.
        rule: The rule's name; filled in by the engine.
        code: The rule's code; filled in by the engine.
    """

    message: str
    severity: Severity
    at: tuple[str, ...] = ()
    file: str | None = None
    line: int | None = None
    source: str | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    threshold: Mapping[str, Any] = field(default_factory=dict)
    cause: str | None = None
    proof: Proof | None = None
    fix: Fix | None = None
    links: tuple[str, ...] = ()
    step: int | None = None
    symptoms: tuple[str, ...] = ()
    parameters: tuple[str, ...] = field(default=(), repr=False, compare=False)
    rule: str = ""
    code: str = ""
    certainty: Certainty = Certainty.MEASURED

    def __post_init__(self) -> None:
        if self.proof is not None and self.proof.works:
            object.__setattr__(self, "certainty", Certainty.PROVEN)
        elif isinstance(self.cause, Inferred):
            object.__setattr__(self, "certainty", Certainty.INFERRED)
        optional = {name: getattr(self, name) for name in ("file", "source", "cause")}
        _make_plain(
            self,
            message=plain_line(self.message),
            at=tuple(map(plain_line, self.at)),
            measured=plain_values(self.measured),
            threshold=plain_values(self.threshold),
            # Nothing else is a page: a link must never run anything.
            links=tuple(plain_line(link) for link in self.links if link.startswith(("https://", "http://"))),
            symptoms=tuple(map(plain_line, self.symptoms)),
            rule=plain_line(self.rule),
            code=plain_line(self.code),
            **{name: None if text is None else plain_line(text) for name, text in optional.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready plain values; numbers that JSON can't hold become strings."""
        return {
            "rule": self.rule,
            "code": self.code,
            "severity": str(self.severity),
            "message": self.message,
            "at": list(self.at),
            "file": self.file,
            "line": self.line,
            "source": self.source,
            "step": self.step,
            "measured": plain(self.measured),
            "threshold": plain(self.threshold),
            "cause": self.cause,
            "certainty": str(self.certainty),
            "proof": None if self.proof is None else vars(self.proof).copy(),
            "fix": None if self.fix is None else _fix_fields(self.fix),
            "symptoms": list(self.symptoms),
            "links": list(self.links),
        }


def _fix_fields(fix: Fix) -> dict[str, Any]:
    return {"text": fix.text, "commands": list(fix.commands), "tried": fix.tried}


def plain(value: Any) -> Any:
    """`value` with tuples as lists and non-finite floats as the strings "nan", "inf", "-inf"."""
    if isinstance(value, Mapping):
        return {plain_line(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return plain_lines(value)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return plain_values(value)
    if value is None or isinstance(value, int | float | bool):
        return value
    return plain_lines(str(value))


def _make_plain(made: object, **values: Any) -> None:
    """Sets what differs on a frozen object that is being made."""
    for name, value in values.items():
        if value is not getattr(made, name):
            object.__setattr__(made, name, value)
