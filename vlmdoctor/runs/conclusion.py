"""What the rules say of a run, from its recording."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.report import Report
from vlmdoctor.rulebook import Rule, answerable


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
    return judge(rules, gather, command=command, target=target, fail_on=fail_on, facts=facts)
