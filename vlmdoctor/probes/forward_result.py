"""What a forward pass that was run says: the loss, or what it raised and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vlmdoctor import subject as subjects
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.probes.batch.fields import standard
from vlmdoctor.probes.failure.traceback import failure_of, frames_of
from vlmdoctor.probes.listening import Outcome
from vlmdoctor.probes.loss.calls import token_losses
from vlmdoctor.probes.positions.rotary_mismatch import rotary_of
from vlmdoctor.sandbox.call import run
from vlmdoctor.sandbox.restore import copy_of
from vlmdoctor.subject import Subject


def read(subject: Subject, outcome: Outcome) -> Forward:
    """What a pass gave; use inside `unchanged`, since a rotary table that clashed is rebuilt on trial."""

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


def supervised_tokens(batch: Any) -> int | None:
    """How many labels a shifted loss sees; None where the batch has no `labels` of token shape."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if labels is None or getattr(labels, "ndim", 0) != 2:
        return None
    return int((labels[:, 1:] != IGNORE_INDEX).sum())
