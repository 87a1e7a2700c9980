"""One forward pass on the user's batch: the loss, or what it raised and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.failure import Failure
from vlmdoctor.evidence.rotary import Rotary

if TYPE_CHECKING:
    from vlmdoctor.engine import Gatherer
    from vlmdoctor.evidence.one_pass import Outcome
    from vlmdoctor.subject import Subject

DEPTH = "forward"
IGNORED_LABEL = -100


@dataclass(frozen=True)
class Forward:
    """What one forward pass gave.

    Attributes:
        loss: The loss; None where the model gave none.
        finite: Whether loss and logits are free of NaN and infinity; None where there are neither.
        logits_shape: The shape of the logits; None where unknown.
        vocab_size: Rows of the output head; None where unknown.
        supervised_tokens: Labels that the loss sees; None where neither it nor the batch tells.
        training: Whether the model was in training mode.
        failure: What the forward pass raised.
        rotary: The rotary table that clashed with a query, where that is what it raised.
    """

    loss: float | None = None
    finite: bool | None = None
    logits_shape: tuple[int, ...] | None = None
    vocab_size: int | None = None
    supervised_tokens: int | None = None
    training: bool = False
    failure: Failure | None = None
    rotary: Rotary | None = None


def probe(subject: Subject, gather: Gatherer) -> Forward:
    """Runs the model once, in the mode that it is in, and leaves it bit for bit as it was."""
    from vlmdoctor.evidence.one_pass import OnePass

    if subject.model is None:
        raise Unavailable("no model was given")
    if subject.batch is None:
        raise Unavailable("no batch was given")
    if any(parameter.is_meta for parameter in subject.model.parameters()):
        raise Unavailable("the model has no weights (it is on the meta device)")
    return gather.once(OnePass).forward


def read(subject: Subject, outcome: Outcome) -> Forward:
    """What a pass gave; use inside `unchanged`, since a rotary table that clashed is rebuilt on trial."""
    import torch

    from vlmdoctor import subject as subjects
    from vlmdoctor.evidence.inputs import standard
    from vlmdoctor.evidence.loss_calls import token_losses
    from vlmdoctor.evidence.raised import failure_of, frames_of
    from vlmdoctor.evidence.rotary_clash import rotary_of
    from vlmdoctor.invoke import run
    from vlmdoctor.unchanged import copy_of

    def again() -> Any:
        with torch.no_grad():
            return run(subject.model, copy_of(subject.batch), subject.loss_fn)[0]

    batch = standard(subject.model, subject.batch, subject.loss_fn)
    supervised = supervised_tokens(batch)
    failure = rotary = None
    if outcome.error is not None:
        failure = failure_of(outcome.error, subject.model)
        rotary = rotary_of(outcome.error, frames_of(outcome.error), subject.model, again)
    elif seen := token_losses(outcome.calls, batch.get("input_ids")):
        supervised = sum(call.counted for call in seen)
    loss, logits = outcome.loss, outcome.logits
    known = [tensor for tensor in (loss, logits) if tensor is not None]
    return Forward(
        loss=None if loss is None else float(loss.detach()),  # a model may switch gradients on
        finite=all(bool(torch.isfinite(tensor).all()) for tensor in known) if known else None,
        logits_shape=None if logits is None else tuple(logits.shape),
        vocab_size=subjects.vocab_size(subject.model),
        supervised_tokens=supervised,
        training=subject.model.training,
        failure=failure,
        rotary=rotary,
    )


def passed(gather: Callable[[type], Any], *, loss: bool = False, finite: bool = False) -> Forward:
    """The forward pass, for probes that run the model again.

    Raises:
        Unavailable: It raised; with `loss` it gave none; with `finite` it gave NaN or infinity.
    """
    forward: Forward = gather(Forward)
    if forward.failure is not None:
        raise Unavailable("the forward pass raises")
    if loss and forward.loss is None:
        raise Unavailable("the model gives no loss for this batch, and no loss_fn was given")
    if finite and forward.finite is False:
        raise Unavailable("the forward pass gives NaN or infinity")
    return forward


def supervised_tokens(batch: Any) -> int | None:
    """How many labels a shifted loss sees; None where the batch has no `labels` of token shape."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if labels is None or getattr(labels, "ndim", 0) != 2:
        return None
    return int((labels[:, 1:] != IGNORED_LABEL).sum())
