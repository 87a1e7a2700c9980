"""The outcome of an examination: findings, and what was and was not looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmdoctor import __version__
from vlmdoctor.coverage import Coverage
from vlmdoctor.errors import FindingsError
from vlmdoctor.finding import Finding, Severity, plain
from vlmdoctor.plain_text import plain_line, plain_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA_VERSION = 1
# Columns of a report that is printed from Python.
WIDTH = 100


@dataclass(frozen=True, repr=False)
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
        coverage: The central questions, and which of them were answered.
        incomplete: Why no judgement on the whole is possible although rules ran, such as `the budget of 5 s
            ran out before 40 of 90 checks`; None where it is.
        evidence: What `plot` draws of: the gradients of a check, or the parameters and steps of a run.
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
    coverage: tuple[Coverage, ...] = ()
    incomplete: str | None = None
    evidence: tuple[object, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("command", "target"):
            object.__setattr__(self, name, plain_line(getattr(self, name)))
        for name in ("ran", "skipped", "crashed"):
            object.__setattr__(self, name, plain_values(getattr(self, name)))
        if self.incomplete is not None:
            object.__setattr__(self, "incomplete", plain_line(self.incomplete))
        object.__setattr__(self, "facts", plain_values(self.facts, lines=True))

    @property
    def failing(self) -> tuple[Finding, ...]:
        """The findings at or above `fail_on`."""
        if self.fail_on == "never":
            return ()
        least = Severity(self.fail_on).rank
        return tuple(finding for finding in self.findings if finding.severity.rank >= least)

    @property
    def why_incomplete(self) -> str | None:
        """Why no judgement on the whole is possible: a rule crashed, nothing ran, or `incomplete`."""
        if self.crashed:
            return f"{', '.join(name for name, _ in self.crashed[:3])} could not run: {self.crashed[0][1]}"
        if not self.ran:
            return f"no check ran ({self.skipped[0][1]})" if self.skipped else "no check ran"
        return self.incomplete

    @property
    def verdict(self) -> str:
        """`pass`, `fail`, or `incomplete`: a gate never passes without having judged."""
        if self.failing:
            return "fail"
        return "pass" if self.why_incomplete is None else "incomplete"

    @property
    def exit_status(self) -> int:
        """0 nothing at or above `fail_on`, 1 findings, 2 could not judge."""
        if self.crashed or not self.ran:
            return 2
        return {"fail": 1, "pass": 0, "incomplete": 2}[self.verdict]

    def raise_for_findings(self, fail_on: str = "error") -> None:
        """Raises `FindingsError`, which prints the cards, for a finding at or above `fail_on`.

        The same where no judgement on the whole was possible.
        """
        judged = dataclasses.replace(self, fail_on=fail_on)
        if judged.verdict == "fail":
            raise FindingsError(str(dataclasses.replace(judged, findings=judged.failing)))
        if judged.verdict == "incomplete":
            raise FindingsError(str(judged))

    def __str__(self) -> str:
        from vlmdoctor.reporters.full import render

        return render(self, color=False, verbose=False, quiet=False, width=WIDTH).rstrip("\n")

    def __repr__(self) -> str:
        from vlmdoctor.reporters.card import summary_line

        return f"<Report of {self.command} {self.target}: {summary_line(self)}>"

    def plot(self) -> Figure:
        """A figure of what was measured; a notebook shows it.

        Of a run: the loss, and the gradient norm and the size of the updates of each part, by step. Of a
        check: the gradient norm of each parameter in one backward pass, by part.

        Raises:
            UserError: There is nothing to plot; the message says why.
        """
        from vlmdoctor.runs.plots.of_report import figure_of

        return figure_of(self.evidence, target=self.target, findings=self.findings, skipped=self.skipped)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready plain values (schema in the documentation)."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "vlmdoctor", "version": __version__},
            "command": self.command,
            "target": self.target,
            "verdict": self.verdict,
            "findings": [finding.to_dict() for finding in self.findings],
            "coverage": [one.to_dict() for one in self.coverage],
            "incomplete": self.why_incomplete,
            "ran": list(self.ran),
            "skipped": [{"rule": name, "reason": reason} for name, reason in self.skipped],
            "crashed": [{"rule": name, "error": error} for name, error in self.crashed],
            "facts": plain(self.facts),
            "seconds": round(self.seconds, 3),
        }

    def _repr_html_(self) -> str:
        from vlmdoctor.reporters.html import fragment

        return fragment(self)
