"""Listening to torch's loss functions while a model runs."""

from __future__ import annotations

import inspect
import math
import random
import warnings
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vlmdoctor.evidence.loss_terms import LossTerms, Term
from vlmdoctor.evidence.trials import innermost
from vlmdoctor.invoke import run
from vlmdoctor.subject import Subject
from vlmdoctor.unchanged import copy_of, unchanged

MOST_ROWS = 1024  # targets whose numbers are looked at
_FUNCTIONS = {
    functional.cross_entropy: "cross_entropy",
    functional.nll_loss: "nll_loss",
    functional.binary_cross_entropy_with_logits: "binary_cross_entropy_with_logits",
}


def listen(subject: Subject) -> LossTerms:
    """One pass over the batch of `subject`, in the mode that its model is in."""
    model = innermost(subject.model) if subject.loss_fn is None else subject.model
    with unchanged(subject), torch.no_grad(), warnings.catch_warnings(), _Listener() as listener:
        warnings.simplefilter("ignore")
        random.seed(0)
        torch.manual_seed(0)
        loss, _ = run(model, copy_of(subject.batch), subject.loss_fn)
    return LossTerms(None if loss is None else float(loss), tuple(listener.terms))


class _Listener(TorchFunctionMode):
    """Notes the calls of loss functions, and changes nothing of them."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: list[Term] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = _FUNCTIONS.get(function)
        if name is not None and isinstance(result, torch.Tensor):
            given = inspect.signature(function).bind(*args, **(kwargs or {}))
            given.apply_defaults()
            term = _term(name, given.arguments, result)
            if term is not None:
                self.terms.append(term)
        return result


def _term(function: str, given: dict[str, Any], result: torch.Tensor) -> Term | None:
    values, target = given["input"], given["target"]
    if function == "binary_cross_entropy_with_logits":
        rows = values.reshape(-1, 1)
        known = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    elif target.is_floating_point() or values.ndim < 1:
        return None  # the targets are probabilities, of which any may count
    else:
        rows = values[None] if values.ndim == 1 else values.movedim(1, -1).flatten(0, -2)
        known = (target != given["ignore_index"]).flatten()
    count, places = int(known.sum()), known.numel()
    if not count or len(rows) != places:
        return None
    where = known.nonzero()[:, 0]
    where = where[:: max(1, count // MOST_ROWS)]
    chosen = rows[where].float()
    sums, log_sums = chosen.sum(-1), chosen.logsumexp(-1)
    finite = [v for v in (sums, log_sums, chosen) if not bool(v.isfinite().all())]
    if finite:
        return None  # NaN and infinity have rules of their own; tables masked by -inf are not judged
    weighted = given.get("weight") is not None or given.get("pos_weight") is not None
    return Term(
        function,
        places=places,
        targets=count,
        classes=rows.shape[-1],
        reduction=given["reduction"],
        total=None if weighted else _total(given["reduction"], result, count),
        low=float(chosen.min()),
        high=float(chosen.max()),
        sums=(float(sums.min()), float(sums.max())),
        log_sums=(float(log_sums.min()), float(log_sums.max())),
        rows=len(chosen),
    )


def _total(reduction: str, result: torch.Tensor, count: int) -> float | None:
    total = float(result.double().sum()) * (count if reduction == "mean" else 1)
    return total if math.isfinite(total) else None
