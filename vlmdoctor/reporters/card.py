"""A finding as a card of five rows, the same in every form: what, where, why, what to do, and more."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.knowledge.shell import is_code
from vlmdoctor.plain_text import plain_line, shown_integer
from vlmdoctor.report import Report

# An address that is made a link: brackets, bars or quotes might end the link and begin something else.
ADDRESS = re.compile(r"https?://[\w.~:/?#@!,;=&%+-]+")
# A glyph and a word: colour is never the only carrier of meaning.
GLYPHS = {Severity.ERROR: "✗", Severity.WARNING: "!", Severity.INFO: "i"}
TONE_GLYPHS = {"pass": "✓", "fail": "✗", "incomplete": "!", "warned": "!"}
# More places and symptoms than this are counted and not listed.
MOST_PLACES = 3
MOST_SYMPTOMS = 2


@dataclass(frozen=True)
class Card:
    """A finding in the words that every form prints.

    Attributes:
        severity: `error`, `warning` or `info`.
        title: The finding in one line, in the terms that people search for.
        name: The rule's name.
        code: The rule's code.
        place: `file:line`; empty where no source is known.
        source: The text of that line; empty where it could not be read.
        modules: Where in the model, the batch or the machine; empty where that is nowhere.
        cause: Why, with how that is known; empty where nothing is said of it.
        symptoms: What else was found that this explains.
        fix: What to do; empty where nothing is said of it.
        pattern: Whether the lines of the fix were not run on a copy, so that names in them may be others.
        tried: Whether they were, and helped.
        commands: The lines of the fix.
        more: The command that says more.
    """

    severity: Severity
    title: str
    name: str
    code: str
    place: str
    source: str
    modules: str
    cause: str
    symptoms: tuple[str, ...]
    fix: str
    pattern: bool
    tried: bool
    commands: tuple[str, ...]
    more: str

    @property
    def glyph(self) -> str:
        """A sign for the severity."""
        return GLYPHS[self.severity]

    @property
    def where(self) -> str:
        """Source line and modules on one line."""
        source = "  ".join(part for part in (self.place, self.source) if part)
        return f"{source}  in {self.modules}" if source and self.modules else source or self.modules

    @property
    def fix_words(self) -> str:
        """What to do, with what is known of the lines behind it."""
        known = "tried on a copy" if self.tried else "pattern, names may differ" if self.pattern else ""
        return f"{self.fix.rstrip(' :')} ({known}):".lstrip() if known else self.fix

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """(label, text) of what is printed under the title; a text may have several lines."""
        fix = [self.fix_words] if self.fix_words else []
        lines = [*fix, *(f"  {line}" for line in self.commands)]
        rows = (
            ("at", self.where),
            ("cause", self.cause),
            *(("also", symptom) for symptom in self.symptoms),
            ("fix", "\n".join(lines)),
            ("more", self.more),
        )
        return tuple((label, text) for label, text in rows if text)


def card_of(finding: Finding) -> Card:
    """The card of a finding."""
    place = ""
    if finding.file is not None:
        place = f"{finding.file}:{finding.line}" if finding.line else finding.file
    fix = finding.fix or Fix("")
    return Card(
        severity=finding.severity,
        title=finding.message,
        name=finding.rule,
        code=finding.code,
        place=place,
        source=finding.source or "",
        modules=_modules(finding),
        cause=_cause(finding),
        symptoms=_bounded(finding.symptoms, MOST_SYMPTOMS, "-v lists them"),
        fix=fix.text,
        pattern=not fix.tried and any(map(is_code, fix.commands)),
        tried=fix.tried and bool(fix.commands),
        commands=fix.commands,
        more=f"vlmdoctor rule {finding.code or finding.rule}",
    )


def detail_rows(finding: Finding) -> tuple[tuple[str, str], ...]:
    """(label, text) of what is printed with `-v` only: values, expected ones, all symptoms, links."""
    rows = [
        ("measured", values(finding.measured)),
        ("expected", values(finding.threshold)),
        ("places", ", ".join(finding.at) if len(finding.at) > MOST_PLACES else ""),
        *(("also", symptom) for symptom in finding.symptoms[MOST_SYMPTOMS:]),
        ("see", "\n".join(finding.links)),
    ]
    return tuple((label, text) for label, text in rows if text)


def rows_of(finding: Finding, *, verbose: bool = True) -> tuple[tuple[str, str], ...]:
    """(label, text) of what is printed under a finding's title; the last row is `more`."""
    rows = card_of(finding).rows
    return (*rows[:-1], *detail_rows(finding), rows[-1]) if verbose else rows


def card_lines(finding: Finding) -> list[str]:
    """The card as plain lines, for logs: title with name and code, then its rows."""
    card = card_of(finding)
    lines = [f"{card.glyph} {card.severity}  {card.title}  [{card.name} {card.code}]"]
    for label, text in card.rows:
        first, *others = text.splitlines()
        lines += [f"  {label:<6}  {first}", *(f"          {line}" for line in others)]
    return lines


def withdrawn_line(*, step: int, message: str, rule: str, code: str, **others: object) -> str:
    """A finding that no longer holds, in one line; `others` are what else is recorded of it."""
    return f"withdrawn at step {step:,}: {message}  [{rule} {code}]"


def withdrawn_lines(report: Report) -> list[str]:
    """A line for each finding that a run had for a while."""
    return [withdrawn_line(**one) for one in report.facts.get("withdrawn", ())]


def tone(report: Report) -> str:
    """`pass`, `fail` or `incomplete`, or `warned` where nothing fails and all is not well."""
    if report.exit_status == 2:
        return "incomplete"
    well = all(finding.severity is Severity.INFO for finding in report.findings)
    return "warned" if report.verdict == "pass" and not well else report.verdict


def summary_parts(report: Report) -> tuple[str, ...]:
    """The parts of the summary line: verdict with counts, checks, what was not judged, seconds."""
    counts = Counter(finding.severity for finding in report.findings)
    found = f"{count(counts[Severity.ERROR], 'error')}, {count(counts[Severity.WARNING], 'warning')}"
    if counts[Severity.INFO]:
        found += f", {counts[Severity.INFO]} info"
    glyph = TONE_GLYPHS[tone(report)]
    checks = count(len(report.ran), "check")
    if report.skipped:
        checks += f", {len(report.skipped)} skipped"
    parts = [f"{glyph} {found}", checks]
    if (reason := report.why_incomplete) is not None:
        if report.exit_status == 1:  # what was found fails whatever else there might be
            parts.insert(1, f"incomplete: {reason}")
        else:
            parts.insert(0, f"! incomplete: {reason}")
            parts[1] = found if counts else "nothing found so far"
    if unjudged := not_judged(report):
        parts.append(f"not judged: {unjudged}")
    parts.append(f"{report.seconds:.1f} s")
    return tuple(parts)


def summary_line(report: Report) -> str:
    """The summary as one line."""
    return " · ".join(summary_parts(report))


def not_judged(report: Report) -> str:
    """The central questions without an answer, those with the same reason together."""
    together: dict[str, list[str]] = defaultdict(list)
    for one in report.coverage:
        if not one.answered:
            together[one.reason].append(one.topic)
    parts = [", ".join(topics) + (f" ({reason})" if reason else "") for reason, topics in together.items()]
    return ", ".join(parts)


def count(number: int, noun: str) -> str:
    """Such as `2 errors`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def values(named: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    """Measured values as one line."""
    return ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in dict(named).items())


def _value(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        shown = ", ".join(_value(item) for item in value[:6])
        return f"[{shown}{', …' if len(value) > 6 else ''}]"
    if hasattr(value, "items"):
        return "{" + ", ".join(f"{name}: {_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, int):
        return shown_integer(value)
    return plain_line(str(value)) or '""'


def _modules(finding: Finding) -> str:
    where = ", ".join(finding.at[:MOST_PLACES])
    if (others := len(finding.at) - MOST_PLACES) > 0:
        where += f" and {others:,} more"
    if finding.step is not None:
        where = f"{where}, from step {finding.step:,}" if where else f"from step {finding.step:,}"
    return where


def _cause(finding: Finding) -> str:
    cause, proof = finding.cause or "", finding.proof
    if proof is not None and proof.works:
        proven = f"proven: with {proof.tried}, {proof.after} (before: {proof.before})"
        return f"{cause}; {proven}" if cause else proven
    if finding.certainty is Certainty.INFERRED and cause:
        cause = f"inferred: {cause}"
    if proof is not None:
        tried = f"tried {proof.tried}: {proof.after} (before: {proof.before}), which did not help"
        return f"{cause}; {tried}" if cause else tried
    return cause


def _bounded(texts: Sequence[str], most: int, hint: str) -> tuple[str, ...]:
    if len(texts) <= most:
        return tuple(texts)
    return (*texts[: most - 1], f"{texts[most - 1]}; and {len(texts) - most} more ({hint})")
