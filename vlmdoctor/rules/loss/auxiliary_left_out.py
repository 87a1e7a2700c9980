"""auxiliary-left-out: the model makes an auxiliary loss that is not part of the loss."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.auxiliary import Auxiliary
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("auxiliary-left-out", "LOSS380")
def auxiliary_left_out(auxiliary: Auxiliary) -> Iterator[Finding]:
    """Load-balancing loss (mixture of experts) is not added to the loss.

    ## Why it matters
    Without it a router sends ever more tokens to the experts that it preferred first; the others do not
    change ([minimind 140](https://github.com/jingyaogong/minimind/issues/140), [TRL
    7248](https://github.com/huggingface/trl/pull/7248)). The loss of the answers falls all the same.

    ## Confidence and false positives
    The output holds a number with such a name (`aux_loss`, `balance_loss`, `z_loss`) and a graph, and the
    loss does not depend on it: measured by autograd. It is a warning, since the number may be for logging
    only.

    ## What to do
    Add it to the loss with its coefficient, usually 0.001 to 0.01.
    """
    if not auxiliary.left_out:
        return
    values = dict(auxiliary.values)
    names = auxiliary.left_out
    yield Finding(
        f"{', '.join(names)} ({values[names[0]]:.4g}) has a graph and is not part of the loss",
        Severity.WARNING,
        at=names,
        measured={name: values[name] for name in names},
        cause=("loss_fn" if auxiliary.added_outside else "the model's forward")
        + " leaves it out; assumed: it should be part of the loss",
        fix=Fix("add it with its coefficient", (f"loss = loss + 0.01 * outputs.{names[0]}",)),
    )


@auxiliary_left_out.bad
def made_and_dropped() -> Auxiliary:
    return Auxiliary(values=(("aux_loss", 1.02),), left_out=("aux_loss",))


@auxiliary_left_out.good
def added() -> Auxiliary:
    return Auxiliary(values=(("aux_loss", 1.02),))
