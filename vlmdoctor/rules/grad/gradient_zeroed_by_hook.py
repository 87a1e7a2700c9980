"""gradient-zeroed-by-hook: hooks on parameters set their gradients to zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.backward import Backward, Gradient
from vlmdoctor.evidence.reach import PATH
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted, places


@rule("gradient-zeroed-by-hook", "GRAD211", explains=("no-gradient",))
def gradient_zeroed_by_hook(backward: Backward) -> Iterator[Finding]:
    """Gradient set to zero by a hook (`parameter.register_hook`).

    ## Why it matters
    Such a hook is left over from an experiment, or freezes the wrong tensor: the gradient exists and is zero,
    requires_grad is True, and weight decay still shrinks the weights.

    ## Confidence and false positives
    Measured twice: the gradient is exactly zero, and it is not zero without the hooks. It is an error where a
    whole part (vision, projector, language, head) does not learn; else a warning, since a hook may freeze on
    purpose.

    ## What to do
    Remove the hook; to freeze a parameter, set requires_grad to False before the optimizer is made.
    """
    found = [g for g in backward.gradients if g.zeroed]
    if not found:
        return
    learning = {g.role for g in backward.gradients if g.present and not g.zero}
    whole = {g.role for g in found} & set(PATH) - learning
    yield Finding(
        f"a hook sets the gradient of {counted(len(found), 'parameter')} to zero",
        Severity.ERROR if whole else Severity.WARNING,
        at=places([g.name for g in found], [g.name for g in backward.gradients]),
        measured={"parameters": len(found), "gradient": 0.0},
        threshold={"parameters": 0},
        cause="without the hooks the same batch gives gradients that are not zero; assumed, not known: that "
        "these parameters should learn",
        fix=Fix("remove the hook, or freeze the parameters with requires_grad_(False)"),
        parameters=tuple(g.name for g in found),
    )


def _measured(zeroed: bool) -> Backward:
    gradients = tuple(
        Gradient(
            name=f"{role}.weight", role=role, present=True, zero=zeroed and role == "projector", finite=True
        )
        for role in ("vision", "projector", "language", "head")
    )
    return Backward(
        loss=4.6,
        gradients=tuple(dataclasses.replace(g, zeroed=bool(g.zero)) for g in gradients),
        trainable=len(gradients),
        parameters=len(gradients),
    )


@gradient_zeroed_by_hook.bad
def projector_zeroed() -> Backward:
    return _measured(True)


@gradient_zeroed_by_hook.good
def hooks_that_only_look() -> Backward:
    return _measured(False)
