"""One forward pass on the user's batch: the loss, or what it raised and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.probes.one_pass import OnePass
from vlmdoctor.subject import Subject


def probe(subject: Subject, gather: Gatherer) -> Forward:
    """Runs the model once, in the mode that it is in, and leaves it bit for bit as it was."""
    if subject.model is None:
        raise Unavailable("no model was given")
    if subject.batch is None:
        raise Unavailable("no batch was given")
    if any(parameter.is_meta for parameter in subject.model.parameters()):
        raise Unavailable("the model has no weights (it is on the meta device)")
    return gather.once(OnePass).forward


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
