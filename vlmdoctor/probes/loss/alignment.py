"""Which token each prediction is compared with, read off the loss, or off the call of `cross_entropy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.nn.functional import cross_entropy

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.alignment import Alignment
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.probes.batch.fields import Inputs, standard
from vlmdoctor.probes.batch.roles import shares_of_shifts
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.probes.listening import Listening, Outcome
from vlmdoctor.probes.loss.calls import LossCall, token_losses
from vlmdoctor.probes.one_pass import observed
from vlmdoctor.sandbox.call import run
from vlmdoctor.sandbox.restore import copy_of, restoring
from vlmdoctor.subject import Subject

FURTHEST = 3  # places ahead
MODEL_SHIFTS = (0, 1, 2)
NEARLY_ALL = 0.9
TOLERANCE, APART = 2e-6, 5.0  # relative to the loss; candidates must differ by so many times that


def probe(subject: Subject, gather: Gatherer) -> Alignment:
    """Finds the shift whose cross-entropy is the loss that the one pass gave.

    Where the labels do not stand beside the ids, or the loss is more than their mean, the scores and the
    targets are taken from the very call of `cross_entropy`.
    """
    passed(gather)
    return observed(gather, "vlmdoctor.probes.loss.alignment")


def observer(subject: Subject, gather: Gatherer) -> LossAlignment:
    """Compares the loss of the pass with its logits."""
    return LossAlignment(subject)


class LossAlignment:
    """The shift whose cross-entropy is the loss."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def attach(self, listening: Listening) -> None:
        """All it needs is what comes out."""

    def conclude(self, outcome: Outcome, forward: Forward) -> Alignment:
        """From loss and logits, else from what the loss function was given."""
        try:
            return self._of_the_loss(outcome)
        except Unavailable:
            found = _of_the_calls(self._subject, outcome)
            if found is None:
                raise
            return found

    def _of_the_loss(self, outcome: Outcome) -> Alignment:
        subject = self._subject
        ids, labels = _ids_and_labels(subject)
        label_shift, matched = _label_shift(ids, labels)
        loss, logits = outcome.loss, outcome.logits
        if logits is None and subject.model.training:
            with restoring(subject):
                subject.model.eval()  # in training some models apply the head to supervised tokens only
                loss, logits = run(subject.model, copy_of(subject.batch), subject.loss_fn)
        if loss is None or logits is None or tuple(logits.shape[:2]) != tuple(labels.shape):
            raise Unavailable("the model gives no loss beside logits for each label")
        losses = {k: _cross_entropy(logits, labels, k) for k in MODEL_SHIFTS}
        value = float(loss)
        return Alignment(
            loss=value,
            model_shift=_which(value, losses),
            label_shift=label_shift,
            losses=tuple(losses.items()),
            matched=matched,
        )


def _of_the_calls(subject: Subject, outcome: Outcome) -> Alignment | None:
    """The alignment of the first token loss; None where it can't be read off."""
    inputs = Inputs(innermost(subject.model), subject.batch, apart=subject.loss_fn is not None)
    if inputs.ids is None or inputs.reads_labels or inputs.ids == "decoder_input_ids":
        return None
    ids, loss, logits = inputs[inputs.ids], outcome.loss, outcome.logits
    seen = token_losses(outcome.calls, ids)
    if not seen or loss is None or logits is None or logits.ndim != 3 or len(logits) != len(ids):
        return None
    targets = _placed(seen[0], logits)
    if targets is None:
        return None
    found = places_ahead(ids, targets)
    if found is None:
        return None
    ahead, matched = found
    label_shift = 0
    if inputs.labels is not None and inputs[inputs.labels].shape == ids.shape:
        shares = shares_of_shifts(ids, inputs[inputs.labels], inputs.ignored)
        label_shift = max(shares, key=lambda shift: shares[shift], default=0)
    front = max(0, logits.shape[1] - ids.shape[1])
    return Alignment(
        loss=float(loss),
        model_shift=ahead - label_shift,
        label_shift=label_shift,
        losses=(),
        matched=matched,
        front=front,
    )


def _ids_and_labels(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    batch = standard(subject.model, subject.batch, subject.loss_fn)
    ids: Any = batch.get("input_ids")
    labels: Any = batch.get("labels")
    for tensor in (ids, labels):
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or tensor.is_floating_point():
            raise Unavailable("the batch has no token ids and labels side by side")
    if ids.shape != labels.shape or getattr(
        getattr(subject.model, "config", None), "is_encoder_decoder", False
    ):
        raise Unavailable("the labels are of another sequence than the token ids")
    return ids, labels


def _label_shift(ids: torch.Tensor, labels: torch.Tensor) -> tuple[int, float]:
    """Which token each label is; raises `Unavailable` where no one shift explains nearly all labels."""
    shares = shares_of_shifts(ids, labels)
    best = max(shares, key=lambda shift: shares[shift], default=None)
    if best is None or shares[best] < NEARLY_ALL:
        raise Unavailable("too few labels are tokens of their own row to tell how they are shifted")
    if sum(share > shares[best] - 0.2 for share in shares.values()) > 1:
        raise Unavailable("the tokens repeat so much that the labels' shift can't be determined")
    return best, shares[best]


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, shift: int) -> float:
    """The mean over labels, row by row, since the logits of a batch in float32 may be large."""
    total, count = 0.0, 0
    rows = logits.shape[-1]
    for row, targets in zip(logits, labels.to(logits.device), strict=True):
        targets = targets[shift:]
        known = (targets >= 0) & (targets < rows)
        if bool(known.any()):
            chosen = row[: len(row) - shift][known].float()
            total += float(cross_entropy(chosen, targets[known], reduction="sum").to(torch.float64))
            count += int(known.sum())
    return total / count if count else float("nan")


def _which(loss: float, losses: Mapping[int, float]) -> int:
    """The shift whose cross-entropy is the loss, and no other's; raises `Unavailable` where none is."""
    scale = TOLERANCE * (1.0 + abs(loss))
    near = [k for k, value in losses.items() if abs(value - loss) <= scale]
    rivals = [k for k, value in losses.items() if abs(value - loss) <= APART * scale]
    if len(near) != 1 or len(rivals) != 1:
        raise Unavailable(
            "the loss is no plain cross-entropy of the logits, so its shift can't be determined"
        )
    return near[0]


def _placed(call: LossCall, logits: torch.Tensor) -> torch.Tensor | None:
    """[B, L]: the target of each prediction, `IGNORE_INDEX` where there is none; L as long as the logits."""
    rows, length, _ = logits.shape
    each, rest = divmod(len(call.targets), rows)
    if rest or not 0 < each <= length or call.rows not in (None, rows):
        return None
    scores = call.scores.unflatten(0, (rows, each))
    starts = [
        start
        for start in range(min(length - each, FURTHEST) + 1)
        if torch.equal(scores.float(), logits[:, start : start + each].float())
    ]
    if len(starts) != 1:
        return None
    targets = call.targets.masked_fill(call.targets == call.ignored, IGNORE_INDEX).unflatten(0, (rows, each))
    placed = targets.new_full((rows, length), IGNORE_INDEX)
    placed[:, starts[0] : starts[0] + each] = targets
    return placed


def places_ahead(ids: torch.Tensor, targets: torch.Tensor) -> tuple[int, float] | None:
    """(how many places ahead of their prediction the targets are, share of them that this explains)."""
    more = targets.shape[1] - ids.shape[1]
    if more == -1:  # the last token foretells nothing, and was not given to the model
        targets, more = functional.pad(targets, (0, 1), value=IGNORE_INDEX), 0
    if more < 0:
        return None
    # Features stand in front of the text, or have taken the place of one token in it: behind them the ids
    # are those at the end. No id is what stands for the features themselves.
    filler = ids.new_full((len(ids), more), int(ids.min()) - 1)
    own = torch.cat([filler, ids], dim=1).to(targets.device)
    shares = {}
    for shift in range(-1, max(FURTHEST, more + 1) + 1):
        compared = own.roll(-shift, dims=1)
        known = targets != IGNORE_INDEX
        if shift > 0:
            known[:, -shift:] = False
        if int(known.sum()) >= 4:
            shares[shift] = float((targets == compared)[known].float().mean())
    best = max(shares, key=lambda shift: shares[shift], default=None)
    if best is None or shares[best] < NEARLY_ALL:
        return None
    if sum(share > shares[best] - 0.2 for share in shares.values()) > 1:
        return None
    return best, shares[best]
