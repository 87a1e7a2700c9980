"""How the model's loss answers to the number of labels that transformers' Trainer passes to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.accumulation import TIMES, Accumulation
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.plain_text import text_of
from vlmdoctor.probes.checkpoint.names import innermost_model
from vlmdoctor.probes.forward import passed
from vlmdoctor.sandbox.call import run
from vlmdoctor.sandbox.restore import copy_of, restoring
from vlmdoctor.subject import Subject


def probe(subject: Subject, gather: Callable[[type], Any]) -> Accumulation:
    """Runs three forward passes in evaluation mode; the model is left as it was."""

    inner = innermost_model(subject.model)
    if subject.loss_fn is not None:
        raise Unavailable("a loss_fn was given, so that the model's own loss is not used")
    told = _trainer_passes_it(inner)
    if not told:
        return Accumulation(model_class=type(inner).__name__, passed=False)
    forward = passed(gather)
    labels = subject.batch.get("labels") if isinstance(subject.batch, Mapping) else None
    if forward.loss is None or not isinstance(labels, torch.Tensor) or labels.ndim < 2:
        raise Unavailable("the batch has no labels, or the model gives no loss for them")
    # As the Trainer counts them: the first label of a row is nothing's target.
    count = int((labels[..., 1:] != IGNORE_INDEX).sum())
    if not count:
        raise Unavailable("all labels of the batch are masked")

    def loss(**more: Any) -> float | None:
        value, _ = run(model, {**copy_of(subject.batch), **more}, None)
        return None if value is None else float(value)

    # Compiling once more for each way to call it would take longer than all the rest.
    model = getattr(subject.model, "_orig_mod", subject.model)
    with restoring(subject), torch.no_grad():
        model.eval()
        alone = loss()
        try:
            same = loss(num_items_in_batch=torch.tensor(count, device=labels.device))
            more = loss(num_items_in_batch=torch.tensor(TIMES * count, device=labels.device))
        except Exception as error:
            message = text_of(error, 200).partition("\n")[0]
            return Accumulation(
                model_class=type(inner).__name__,
                passed=True,
                loss=alone,
                raised=f"{type(error).__name__}: {message}",
            )
    return Accumulation(
        model_class=type(inner).__name__, passed=True, loss=alone, told_same=same, told_more=more
    )


def _trainer_passes_it(model: Any) -> bool:
    """Whether transformers' Trainer takes the model for one that wants `num_items_in_batch`."""
    declared = getattr(model, "accepts_loss_kwargs", None)
    if declared is not None:
        return bool(declared)
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters)
