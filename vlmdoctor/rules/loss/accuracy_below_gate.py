"""accuracy-below-gate: the run had to reach a share of right answers and did not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from vlmdoctor.evidence.steps import Evaluation, Steps
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_steps


@rule("accuracy-below-gate", "LOSS110")
def accuracy_below_gate(steps: Steps) -> Iterator[Finding]:
    """Finds runs that end below the share of right answers that was asked for.

    ## Why it matters
    A training loop that runs is not a model that sees: the loss falls by the wording of the answers alone.
    With `vlmdoctor train --require-accuracy 0.9` a change to the model, the data or the trainer is only good
    when the trained model answers questions about images that it has never seen.

    ## How sure it is
    It compares the last evaluation with the number given, and says nothing where none was given or the run is
    not finished. A run that was never evaluated does not pass: a gate that measured nothing is no gate.

    ## What to do
    See whether the answers without looking (`accuracy_shuffled`) are as good: then the image never reaches
    the decoder, and the other findings say why. Otherwise the run was too short, or the number too high.
    """
    wanted = steps.required_accuracy
    if wanted is None or not steps.finished:
        return
    last = next((e for e in reversed(steps.evaluations) if e.accuracy is not None), None)
    if last is None or last.accuracy is None or math.isnan(last.accuracy):
        yield Finding(
            f"{_percent(wanted)} right answers were asked for, and none were measured",
            Severity.ERROR,
            threshold={"accuracy": wanted},
            cause="no evaluation took place in this run",
            fix=Fix("evaluate during or after the run", ("vlmdoctor train --eval-samples 400",)),
        )
    elif last.accuracy < wanted:
        blind = last.accuracy_shuffled
        measured = {"accuracy": last.accuracy, "accuracy_shuffled": blind, "samples": last.samples}
        seeing = blind is None or last.accuracy > blind + 0.1
        yield Finding(
            f"{_percent(last.accuracy)} of the answers are right, {_percent(wanted)} were asked for",
            Severity.ERROR,
            measured={name: value for name, value in measured.items() if value is not None},
            threshold={"accuracy": wanted},
            cause=(
                "the model is not good enough yet (inferred: no other fault is needed to explain it)"
                if seeing
                else "it answers without looking: the wrong image gives answers that are as good"
            ),
            certainty=Certainty.INFERRED if seeing else Certainty.MEASURED,
            fix=Fix(
                "train longer (--steps), or look at the questions that fail by kind in report.html"
                if seeing
                else "find out why the image does not count: look at the other findings, the projector's "
                "gradient in grads.png, and a longer run (looking is often learned late)"
            ),
            step=last.step,
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _gated(wanted: float, *evaluations: Evaluation) -> Steps:
    return dataclasses.replace(sample_steps(), required_accuracy=wanted, evaluations=evaluations)


def _evaluation(accuracy: float) -> Evaluation:
    return Evaluation(
        step=299,
        loss=0.2,
        loss_shuffled=3.1,
        loss_blank=2.8,
        accuracy=accuracy,
        accuracy_shuffled=0.1,
        samples=400,
    )


@accuracy_below_gate.bad
def too_few_right_answers() -> Steps:
    return _gated(0.9, _evaluation(0.62))


@accuracy_below_gate.bad
def never_evaluated() -> Steps:
    return _gated(0.9)


@accuracy_below_gate.good
def good_enough() -> Steps:
    return _gated(0.9, _evaluation(0.5), _evaluation(0.95))
