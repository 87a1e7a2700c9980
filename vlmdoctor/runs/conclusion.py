"""What the rules say of a run, from its recording."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Severity
from vlmdoctor.report import Report
from vlmdoctor.rulebook import Rule, answerable
from vlmdoctor.runs.verdict import SHORT_RUN, too_early, uses_images

UNUSED = "it was not seen to use its images"


def rules_for_runs() -> list[Rule]:
    """The rules that a recorded run can answer: parameters and steps are enough for them."""
    return answerable({Parameters, Steps})


def judge_run(
    parameters: Parameters,
    steps: Steps,
    rules: Sequence[Rule],
    *,
    command: str,
    target: str,
    fail_on: str = "error",
    required_accuracy: float | None = None,
    facts: dict[str, Any] | None = None,
) -> Report:
    """What `rules` say of a run, watched or read back."""
    if required_accuracy is not None:
        steps = dataclasses.replace(steps, required_accuracy=required_accuracy)
    gather = Gatherer(None, [parameters, steps])
    known = dict(facts or {})
    if steps.withdrawn:
        known["withdrawn"] = [vars(one) for one in steps.withdrawn]
    report = judge(rules, gather, command=command, target=target, fail_on=fail_on, facts=known)
    reason = undecided(steps)
    if reason == UNUSED and _says_so(report, rules):
        reason = None
    return dataclasses.replace(report, incomplete=reason)


def _says_so(report: Report, rules: Sequence[Rule]) -> bool:
    """Whether an error is found that is, or explains, that images are ignored: that is a judgement."""
    about = {rule.name for rule in rules if "image-ignored" in rule.explains} | {"image-ignored"}
    return any(one.rule in about and one.severity is Severity.ERROR for one in report.findings)


def undecided(steps: Steps) -> str | None:
    """Why nothing can be said of a run on the whole, where nothing was found; None where something can.

    A run without a step or a loss was not seen. One that was asked whether it uses its images has no good
    answer as long as it does not.
    """
    made = steps.made
    if not made:
        return "no optimizer step was seen"
    if not steps.losses:
        return "loss not seen: return it under `loss` or call watcher.log(loss=...)"
    if made < SHORT_RUN or not steps.evaluations:
        return None
    if uses_images(vars(steps.evaluations[-1])) is not False:
        return None
    if early := too_early(made, steps.planned_steps):
        return f"too early to tell whether it uses its images ({early})"
    return UNUSED
