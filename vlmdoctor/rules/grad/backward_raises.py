"""A backward pass that raises."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.failure import Failure
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.cfg.forward_raises import finding_of


@rule("backward-raises", "GRAD101")
def backward_raises(backward: Backward) -> Iterator[Finding]:
    """Backward pass raises: the loss has no graph, or `loss.backward()` fails.

    ## Why it matters
    No step can be taken. The most frequent form, `element 0 of tensors does not require grad and does not
    have a grad_fn`, means that the loss depends on no trainable parameter: everything is frozen, or the
    trainable part was detached by `no_grad`, `detach` or `.data` (or runs under reentrant checkpointing whose
    inputs need no gradient).

    ## Confidence and false positives
    The exception is real. The parameters with requires_grad are counted; which of the causes above cut the
    graph is not established.

    ## What to do
    Set `requires_grad` for the parameters that should learn, before the optimizer is made; then check which
    of them still get no gradient.
    """
    failure = backward.failure
    if failure is None:
        return
    if "does not require grad" not in failure.message:
        yield finding_of(failure, "the backward pass")
        return
    if backward.trainable == 0:
        cause = f"none of the {backward.parameters} parameter tensors has requires_grad"
        fix = Fix("set requires_grad for the parameters that should learn, before the optimizer is made")
    else:
        cause = (
            f"{backward.trainable} of {backward.parameters} parameter tensors have requires_grad, and the "
            f"loss depends on none of them through the graph"
        )
        fix = Fix("look for no_grad, detach, .data or an in-place copy between them and the loss")
    yield Finding(
        message="loss.backward() raises: the loss has no graph",
        severity=Severity.ERROR,
        measured={"loss": backward.loss, "trainable": backward.trainable, "parameters": backward.parameters},
        cause=cause,
        fix=fix,
    )


@backward_raises.bad
def detached_loss() -> Backward:
    message = "element 0 of tensors does not require grad and does not have a grad_fn"
    return Backward(
        loss=4.6,
        gradients=(),
        trainable=8,
        parameters=8,
        failure=Failure(type="RuntimeError", message=message),
    )


@backward_raises.good
def runs() -> Backward:
    return Backward(loss=4.6, gradients=(), trainable=8, parameters=8)
