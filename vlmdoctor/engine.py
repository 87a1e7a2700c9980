"""Runs rules: gathers the evidence that they ask for, once, and judges it."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vlmdoctor.errors import Unavailable, WouldMove
from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Finding
from vlmdoctor.plain_text import raised
from vlmdoctor.report import Report
from vlmdoctor.rulebook import Rule
from vlmdoctor.sandbox.reading import source_line
from vlmdoctor.sandbox.signals import raise_if_interrupted

# What a report keeps, to be plotted.
PLOTTED = (Backward, Parameters, Steps)
DEPTHS = ("static", "shapes", "forward", "backward", "steps")


class Gatherer:
    """Gathers each kind of evidence at most once.

    The module that defines an evidence class names its probe (`PROBE`) and how deep that goes (`DEPTH`); see
    `probe_of`. `gather(OtherEvidence)` lets a probe build on another's evidence. A probe that can't do its
    work raises `Unavailable` with the reason.
    """

    def __init__(
        self,
        subject: object,
        given: Iterable[object] = (),
        *,
        depth: str = "steps",
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.subject = subject
        self.depth = depth
        self.progress = progress or (lambda _: None)
        self._gathered: dict[type, object] = {type(evidence): evidence for evidence in given}
        self._refused: dict[type, Exception] = {}
        self._once: dict[Any, Any] = {}

    def __call__(self, evidence_class: type) -> Any:
        """The evidence of this class; raises `Unavailable` where it can't be had."""
        if evidence_class in self._gathered:
            return self._gathered[evidence_class]
        if evidence_class in self._refused:
            raise self._refused[evidence_class]
        try:
            gathered = self._probe(evidence_class)
            raise_if_interrupted()
            self._gathered[evidence_class] = gathered
        except WouldMove as refusal:
            refused = Unavailable(str(refusal))
        except Unavailable as reason:
            raise_if_interrupted()
            refused = reason.without_frames()
        except Exception as error:
            raise_if_interrupted()
            self._refused[evidence_class] = error
            raise
        else:
            return gathered
        self._refused[evidence_class] = refused
        raise refused

    def _probe(self, evidence_class: type) -> object:
        needed = getattr(importlib.import_module(evidence_class.__module__), "DEPTH", None)
        if self.subject is None or needed is None:
            raise Unavailable(f"no {_phase(evidence_class)} evidence was given")
        # Before the probe's module is imported, which may import torch.
        if DEPTHS.index(needed) > DEPTHS.index(self.depth):
            raise Unavailable(f"needs --depth {needed}")
        probe = probe_of(evidence_class)
        self.progress(_phase(evidence_class))
        return probe(self.subject, self)

    def once(self, make: Callable[[Any, Gatherer], Any]) -> Any:
        """What `make(subject, gather)` gave or raised the first time: probes share work by it."""
        if make not in self._once:
            try:
                self._once[make] = make(self.subject, self)
            except Unavailable as reason:
                self._once[make] = reason.without_frames()
        if isinstance(made := self._once[make], Unavailable):
            raise made
        return made

    @property
    def gathered(self) -> Mapping[type, object]:
        """What has been gathered so far, by class."""
        return self._gathered


def probe_of(evidence_class: type) -> Callable[[Any, Any], object]:
    """The `probe(subject, gather)` that makes this evidence, in the module that the evidence's own names.

    Raises:
        Unavailable: There is none, since it can only be handed in; its module says why (`GIVEN`).
    """
    home = importlib.import_module(evidence_class.__module__)
    if hasattr(home, "GIVEN"):
        raise Unavailable(home.GIVEN)
    probe: Callable[[Any, Any], object] = importlib.import_module(home.PROBE).probe
    return probe


def _phase(evidence_class: type) -> str:
    return evidence_class.__module__.rpartition(".")[2]


def judge(
    rules: Iterable[Rule],
    gather: Gatherer,
    *,
    command: str,
    target: str,
    fail_on: str = "error",
    facts: Mapping[str, Any] | None = None,
) -> Report:
    """Runs `rules` on what `gather` can supply.

    A rule whose evidence can't be had is skipped with the reason; one that raises is `crashed`,
    and the others go on.
    """
    started = time.perf_counter()
    ran: list[Rule] = []
    skipped, crashed, findings = [], [], []
    for candidate in rules:
        evidence = {}
        try:
            for parameter, (evidence_class, optional) in candidate.requirements.items():
                try:
                    evidence[parameter] = gather(evidence_class)
                except Unavailable:
                    if not optional:
                        raise
                    evidence[parameter] = None
            found = list(candidate.function(**evidence))
            raise_if_interrupted()
        except (Unavailable, WouldMove) as reason:
            skipped.append((candidate.name, str(reason)))
        except Exception as error:
            raise_if_interrupted()
            crashed.append((candidate.name, raised(error, 1000)))
        else:
            ran.append(candidate)
            findings += [_of_rule(finding, candidate) for finding in found]
    return Report(
        command=command,
        target=target,
        findings=tuple(fold(findings, ran)),
        ran=tuple(candidate.name for candidate in ran),
        skipped=tuple(skipped),
        crashed=tuple(crashed),
        facts=facts or {},
        seconds=time.perf_counter() - started,
        fail_on=fail_on,
        evidence=tuple(seen for seen in gather.gathered.values() if isinstance(seen, PLOTTED)),
    )


def _of_rule(finding: Finding, rule: Rule) -> Finding:
    """The finding with its rule's name and code, and with the links of its page behind its own."""
    links = tuple(dict.fromkeys((*finding.links, *rule.links)))
    source = finding.source or source_line(finding.file, finding.line)
    return dataclasses.replace(finding, rule=rule.name, code=rule.code, links=links, source=source)


def fold(findings: Iterable[Finding], rules: Iterable[Rule]) -> list[Finding]:
    """One finding for one fault: a finding that another's rule explains becomes a line under it.

    Causes come before what they leave unexplained, then errors before warnings, then by code.
    """
    findings = list(findings)
    explains = {candidate.name: candidate.explains for candidate in rules}

    def cause_of(symptom: Finding) -> Finding | None:
        # A remark can't be the cause of an error, and folding must never hide that something failed.
        causes = (
            f
            for f in findings
            if symptom.rule in explains.get(f.rule, ()) and f.severity.rank >= symptom.severity.rank
        )
        return min((f for f in causes if f is not symptom), key=_urgency, default=None)

    causes = {id(finding): cause_of(finding) for finding in findings}
    kept = []
    for finding in findings:
        if causes[id(finding)] is not None:
            continue
        below = (s for s in findings if _root(s, causes) is finding)
        symptoms = tuple(text for s in below for text in (s.message, *s.symptoms))
        kept.append(dataclasses.replace(finding, symptoms=(*finding.symptoms, *symptoms)))
    return sorted(kept, key=_urgency)


def _root(finding: Finding, causes: Mapping[int, Finding | None]) -> Finding | None:
    """The cause at the end of the chain above `finding`; None where it is no symptom."""
    cause = causes[id(finding)]
    while cause is not None and causes[id(cause)] is not None:
        cause = causes[id(cause)]
    return cause


def _urgency(finding: Finding) -> tuple[int, str]:
    return (-finding.severity.rank, finding.code)
