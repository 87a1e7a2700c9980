"""When the rules judge a run that goes on, and what they have found of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from vlmdoctor.finding import Finding
from vlmdoctor.report import Report

JUDGE_SECONDS = 2.0
JUDGE_SHARE = 200  # judging may take one part in so many of the run's time
EAGER_JUDGEMENTS = 64  # until then also at steps 1, 2, 4, 8 ...


class Judging:
    """The schedule of the judgements, and each finding once.

    Args:
        on: Whether there are any judgements at all.

    Attributes:
        findings: What was found so far, by rule and severity.
    """

    def __init__(self, *, on: bool) -> None:
        self.on = on
        self.findings: dict[tuple[str, str], Finding] = {}
        self._next = time.perf_counter() + JUDGE_SECONDS
        self._steps = 0

    def due(self, *, sampled: bool) -> bool:
        """Whether to judge after this step, which is one more."""
        self._steps += 1
        doubled = self._steps <= EAGER_JUDGEMENTS and self._steps & (self._steps - 1) == 0
        return self.on and sampled and (doubled or time.perf_counter() >= self._next)

    def soon(self) -> None:
        """The next sampled step is to be judged."""
        self._next = -math.inf

    def judge(self, judge: Callable[[], None]) -> None:
        """Judges, and puts the next time off by how long that took."""
        began = time.perf_counter()
        judge()
        self._next = began + max(JUDGE_SECONDS, (time.perf_counter() - began) * JUDGE_SHARE)

    def gone(self, report: Report) -> Iterator[Finding]:
        """The findings that were there before and are there no longer, not even folded under another."""
        now = {(finding.rule, str(finding.severity)) for finding in report.findings}
        folded = {symptom for finding in report.findings for symptom in finding.symptoms}
        rules = {rule for rule, _ in now}
        for key, finding in list(self.findings.items()):
            if key in now or finding.message in folded:
                continue
            # One that is worse now, or less bad, goes on under its new severity.
            del self.findings[key]
            if finding.rule not in rules:
                yield finding

    def new(self, report: Report) -> Iterator[Finding]:
        """The findings that were not there before."""
        for finding in report.findings:
            key = (finding.rule, str(finding.severity))
            if key not in self.findings:
                self.findings[key] = finding
                yield finding
