"""What torch's loss functions are given and give while a model runs."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch

from vlmdoctor.engine import Gatherer
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.loss_terms import LossTerms, Term
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.listening import Listening, Outcome
from vlmdoctor.probes.loss.calls import FUNCTIONS
from vlmdoctor.probes.one_pass import observed
from vlmdoctor.subject import Subject

MOST_ROWS = 1024  # targets whose numbers are looked at


def probe(subject: Subject, gather: Gatherer) -> LossTerms:
    """Listens to torch's loss functions in the one pass."""
    passed(gather)
    return observed(gather, "vlmdoctor.probes.loss.terms")


def observer(subject: Subject, gather: Gatherer) -> LossListener:
    """Listens to torch's loss functions."""
    return LossListener()


class LossListener:
    """Notes the calls of loss functions."""

    def __init__(self) -> None:
        self._terms: list[Term] = []

    def attach(self, listening: Listening) -> None:
        """Asks for each call."""
        self._terms.clear()
        listening.losses(self._note)

    def conclude(self, outcome: Outcome, forward: Forward) -> LossTerms:
        """The calls beside the loss that came out."""
        return LossTerms(loss=forward.loss, terms=tuple(self._terms))

    def _note(self, function: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        if isinstance(result, torch.Tensor):
            given = inspect.signature(function).bind(*args, **kwargs)
            given.apply_defaults()
            term = _term(FUNCTIONS[function], given.arguments, result)
            if term is not None:
                self._terms.append(term)


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
        function=function,
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
