"""accuracy-below-gate: the run did not reach the required accuracy."""

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
    """Accuracy below the required one.

    ## Why it matters
    A training loop that runs is not a model that uses its images: the loss falls by the wording of the
    answers alone. With `vlmdoctor train --require-accuracy 0.9` a change to the model, the data or the
    trainer passes only if the trained model answers questions about images that were not in its training
    data.

    ## Confidence and false positives
    The last evaluation is compared with the required accuracy. Nothing is reported where none was required or
    the run is not finished. A run without any evaluation does not pass.

    ## What to do
    Compare with the accuracy with shuffled images (`accuracy_shuffled`). If both are equal, the image never
    reaches the decoder, and the other findings say why. Otherwise the run was too short, or the required
    accuracy too high.
    """
    wanted = steps.required_accuracy
    if wanted is None or not steps.finished:
        return
    last = next((e for e in reversed(steps.evaluations) if e.accuracy is not None), None)
    if last is None or last.accuracy is None or math.isnan(last.accuracy):
        yield Finding(
            f"required accuracy {_percent(wanted)}, but none was measured",
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
            f"accuracy {_percent(last.accuracy)}, required {_percent(wanted)}",
            Severity.ERROR,
            measured={name: value for name, value in measured.items() if value is not None},
            threshold={"accuracy": wanted},
            cause=(
                "the model is not good enough yet (inferred: no other fault is needed to explain it)"
                if seeing
                else "the model does not use its images: with shuffled images the accuracy is the same"
            ),
            certainty=Certainty.INFERRED if seeing else Certainty.MEASURED,
            fix=Fix(
                "train longer (--steps), or look at the questions that fail by kind in report.html"
                if seeing
                else "find out why the image has no effect: look at the other findings, the projector's "
                "gradient in grads.png, and a longer run (image use is often learned late)"
            ),
            step=last.step,
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + "%"


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
