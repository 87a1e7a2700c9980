"""weights-overwritten: the forward pass replaces the values of trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.weights_in_use import WeightsInUse
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted


@rule("weights-overwritten", "PARAM111")
def weights_overwritten(use: WeightsInUse) -> Iterator[Finding]:
    """Weights overwritten in each forward pass: updates are lost.

    ## Why it matters
    Weights that are initialised, loaded or copied inside forward (or in a forward hook) start again at each
    step. They get gradients and change, so nothing looks wrong, and they never learn.

    ## Confidence and false positives
    It was tried: the parameters were set to other values, and after the next pass, with the same random
    numbers, they had the values of the pass before. Clipping or normalising weights in forward is never
    reported.

    ## What to do
    Initialise and load in `__init__`, or before training.
    """
    if use.overwritten:
        yield Finding(
            f"the forward pass overwrites {counted(len(use.overwritten), 'trainable parameter')}",
            Severity.ERROR,
            at=use.overwritten[:8],
            measured={"parameters": len(use.overwritten), "kept_what_was_written": 0},
            threshold={"parameters": 0},
            cause="they are initialised, loaded or copied inside forward: the optimizer's updates are lost",
            fix=Fix("initialise or load once, before training"),
            parameters=use.overwritten,
        )


@weights_overwritten.bad
def initialised_in_forward() -> WeightsInUse:
    return WeightsInUse(overwritten=("vision_proj.weight", "vision_proj.bias"))


@weights_overwritten.good
def left_alone() -> WeightsInUse:
    return WeightsInUse()
