"""auxiliary-dominates: nearly all of the loss is an auxiliary loss."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.auxiliary import Auxiliary
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

MOST = 0.9  # of the loss


@rule("auxiliary-dominates", "LOSS381", explains=("initial-loss",))
def auxiliary_dominates(auxiliary: Auxiliary) -> Iterator[Finding]:
    """Load-balancing loss dominates: it is more than nine tenths of the loss.

    ## Why it matters
    Its coefficient is about 0.01 to 0.0001, so that it only nudges the router. With a coefficient of another
    definition (a sum over tokens and layers instead of a mean, a percentage) the model learns to balance its
    experts, and little about the answer.

    ## Confidence and false positives
    The coefficient is the derivative of the loss by that output, from autograd. It is a warning, since a
    model that overfits its answers has little other loss left.

    ## What to do
    Look at the coefficient, and at what the auxiliary loss is averaged over.
    """
    large = [(name, share) for name, share in auxiliary.shares if abs(share) > MOST * abs(auxiliary.loss)]
    if not large or not auxiliary.loss:
        return
    name, share = large[0]
    yield Finding(
        f"{name} makes up {share:.4g} of a loss of {auxiliary.loss:.4g}",
        Severity.WARNING,
        at=(name,),
        measured={"share": share / auxiliary.loss, "value": dict(auxiliary.values)[name]},
        threshold={"share": MOST},
        cause=f"its coefficient is {share / (dict(auxiliary.values)[name] or 1.0):.4g}; assumed: it is "
        "meant to be a small part of the loss",
        fix=Fix("use a small coefficient", ("router_aux_loss_coef=0.01",)),
    )


@auxiliary_dominates.bad
def a_coefficient_of_ten_thousand() -> Auxiliary:
    return Auxiliary(values=(("aux_loss", 2.0),), shares=(("aux_loss", 20000.0),), loss=20005.0)


@auxiliary_dominates.good
def a_hundredth() -> Auxiliary:
    return Auxiliary(values=(("aux_loss", 2.0),), shares=(("aux_loss", 0.02),), loss=5.03)
