"""optimizer-state-misfit: the optimizer's state belongs to other parameters."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.optimizer import Optimizer, OptimizerState
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

NAMED = 4


@rule("optimizer-state-misfit", "OPT146", explains=("resume-not-exact", "weights-not-moving"))
def optimizer_state_misfit(optimizer: Optimizer) -> Iterator[Finding]:
    """Optimizer state has other shapes than the parameters.

    ## Why it matters
    A state dict knows parameters by their index, not by their name. Loaded into an optimizer whose parameters
    have another order (other groups, a part unfrozen in between, adapters added), each parameter gets the
    moments of another. Where shapes differ the first step raises; where they do not, the step silently uses
    the moments of another tensor.

    ## Confidence and false positives
    Shapes are compared; optimizers that are not torch's own, which may keep moments in a form of their own,
    are not judged. Where all shapes happen to agree nothing is found.

    ## What to do
    Make the groups as in the run that was saved, in the same order, before loading.
    """
    state = optimizer.needing_state()
    if not state.misfits:
        return
    name, own, kept = state.misfits[0]
    yield Finding(
        f"the optimizer's state is of other parameters: {name} is {list(own)}, its moments are {list(kept)}",
        Severity.ERROR,
        at=tuple(dict.fromkeys(one for one, _, _ in state.misfits))[:NAMED],
        measured={"misfits": len({one for one, _, _ in state.misfits}), "with_state": state.tensors},
        threshold={"misfits": 0},
        cause="the state was loaded into groups whose parameters have another order than those of the saved "
        "run",
        fix=Fix("make the optimizer's groups as when the state was saved, then load it"),
    )


@optimizer_state_misfit.bad
def another_order() -> Optimizer:
    return Optimizer(
        state=OptimizerState(tensors=40, misfits=(("lm_head.weight", (680, 96), (96,)),), steps=500)
    )


@optimizer_state_misfit.good
def as_saved() -> Optimizer:
    return Optimizer(
        state=OptimizerState(
            tensors=40, steps=500, lr=2e-4, initial_lr=2e-4, scheduler="LambdaLR", last_epoch=500
        )
    )
