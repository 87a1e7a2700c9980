"""The outcome of an examination: findings, and what was and was not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmdoctor import __version__
from vlmdoctor.errors import FindingsError
from vlmdoctor.finding import Finding, Severity, plain
from vlmdoctor.plain_text import plain_line, plain_values

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Report:
    """What an examination found. Every text in it is made plain when it is made.

    Attributes:
        command: The command or call that made it.
        target: What was examined, in the user's words.
        findings: Most upstream first; symptoms are folded under their cause.
        ran: Names of the rules that gave a judgement.
        skipped: (rule, reason) of those that could not.
        crashed: (rule, error) of those that failed; a crash means that the check could not run.
        facts: What else was established, as plain values.
        seconds: How long it took.
        fail_on: The least severity that fails: `error`, `warning` or `never`.
    """

    command: str
    target: str
    findings: tuple[Finding, ...] = ()
    ran: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    crashed: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    fail_on: str = "error"

    def __post_init__(self) -> None:
        for name in ("command", "target"):
            object.__setattr__(self, name, plain_line(getattr(self, name)))
        for name in ("ran", "skipped", "crashed"):
            object.__setattr__(self, name, plain_values(getattr(self, name)))
        object.__setattr__(self, "facts", plain_values(self.facts, lines=True))

    @property
    def failing(self) -> tuple[Finding, ...]:
        """The findings at or above `fail_on`."""
        if self.fail_on == "never":
            return ()
        least = Severity(self.fail_on).rank
        return tuple(finding for finding in self.findings if finding.severity.rank >= least)

    @property
    def verdict(self) -> str:
        """`pass`, `fail`, or `incomplete` (a rule crashed or nothing ran: a gate never passes vacuously)."""
        if self.failing:
            return "fail"
        return "pass" if self.ran and not self.crashed else "incomplete"

    @property
    def exit_status(self) -> int:
        """0 nothing at or above `fail_on`, 1 findings, 2 could not run."""
        if self.crashed or not self.ran:
            return 2
        return 1 if self.failing else 0

    def raise_for_findings(self, fail_on: str = "error") -> None:
        """Raises `FindingsError` for a finding at or above `fail_on`, or where the checks could not run."""
        judged = Report(**{**vars(self), "fail_on": fail_on})
        if judged.failing:
            lines = [f"{f.severity}: {f.message} [{f.rule} {f.code}]" for f in judged.failing]
            raise FindingsError("\n".join(lines))
        if judged.verdict == "incomplete":
            reasons = [f"{name}: {error}" for name, error in (*self.crashed, *self.skipped)]
            raise FindingsError("could not run: " + ("; ".join(reasons) or "no rule ran"))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready plain values (schema in the documentation)."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "vlmdoctor", "version": __version__},
            "command": self.command,
            "target": self.target,
            "verdict": self.verdict,
            "findings": [finding.to_dict() for finding in self.findings],
            "ran": list(self.ran),
            "skipped": [{"rule": name, "reason": reason} for name, reason in self.skipped],
            "crashed": [{"rule": name, "error": error} for name, error in self.crashed],
            "facts": plain(self.facts),
            "seconds": round(self.seconds, 3),
        }

    def _repr_html_(self) -> str:
        from vlmdoctor.reporters.html import fragment

        return fragment(self)
