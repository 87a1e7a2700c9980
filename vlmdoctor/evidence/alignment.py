"""Which token the prediction at each place is compared with: told from the loss that the model gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    import torch

    from vlmdoctor.subject import Subject

DEPTH = "forward"
MODEL_SHIFTS = (0, 1, 2)
NEARLY_ALL = 0.9
TOLERANCE, APART = 2e-6, 5.0  # relative to the loss; candidates must differ by so many times that


@dataclass(frozen=True)
class Alignment:
    """How labels and predictions were brought together.

    Attributes:
        loss: The model's loss on the batch.
        model_shift: The prediction at place t is compared with the label at t + model_shift.
        label_shift: The label at place t is the token at t + label_shift.
        losses: The cross-entropy of the model's logits for each `model_shift` that was tried.
        matched: Share of labels that `label_shift` explains.
        front: How many places the model puts in front of the text, such as those of a prefix.
    """

    loss: float
    model_shift: int
    label_shift: int
    losses: tuple[tuple[int, float], ...]
    matched: float
    front: int = 0

    @property
    def ahead(self) -> int:
        """How many places ahead the model is taught to predict: 1 for a language model."""
        return self.model_shift + self.label_shift


def probe(subject: Subject, gather: Callable[[type], Any]) -> Alignment:
    """Runs the model once and finds the shift whose cross-entropy is the loss that it gave.

    Where the labels do not stand beside the ids, or the loss is more than their mean, the scores and the
    targets are taken from the very call of `cross_entropy`.
    """
    from vlmdoctor.evidence.alignment_seen import seen_alignment
    from vlmdoctor.evidence.forward import passed
    from vlmdoctor.unchanged import unchanged

    passed(gather)
    try:
        ids, labels = _ids_and_labels(subject)
        label_shift, matched = _label_shift(ids, labels)
        with unchanged(subject):
            loss, logits = _loss_and_logits(subject)
            if logits is None and subject.model.training:
                subject.model.eval()  # in training some models apply the head to supervised tokens only
                loss, logits = _loss_and_logits(subject)
            if loss is None or logits is None or tuple(logits.shape[:2]) != tuple(labels.shape):
                raise Unavailable("the model gives no loss beside logits for each label")
            losses = {k: _cross_entropy(logits, labels, k) for k in MODEL_SHIFTS}
            value = float(loss)
        shift = _which(value, losses)
    except Unavailable:
        with unchanged(subject):
            found = seen_alignment(subject)
        if found is None:
            raise
        return found
    return Alignment(value, shift, label_shift, tuple(losses.items()), matched)


def _ids_and_labels(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    from vlmdoctor.evidence.inputs import standard

    batch = standard(subject.model, subject.batch, subject.loss_fn)
    ids, labels = batch.get("input_ids"), batch.get("labels")
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
    from vlmdoctor.evidence.batch_roles import shares_of_shifts

    shares = shares_of_shifts(ids, labels)
    best = max(shares, key=lambda shift: shares[shift], default=None)
    if best is None or shares[best] < NEARLY_ALL:
        raise Unavailable("too few labels are tokens of their own row to tell how they are shifted")
    if sum(share > shares[best] - 0.2 for share in shares.values()) > 1:
        raise Unavailable("the tokens repeat so much that the labels' shift can't be told")
    return best, shares[best]


def _loss_and_logits(subject: Subject) -> tuple[Any, Any]:
    import torch

    from vlmdoctor.invoke import run
    from vlmdoctor.unchanged import copy_of

    with torch.no_grad():
        return run(subject.model, copy_of(subject.batch), subject.loss_fn)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, shift: int) -> float:
    """The mean over labels, row by row, since the logits of a batch in float32 may be large."""
    import torch
    from torch.nn.functional import cross_entropy

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
        raise Unavailable("the loss is no plain cross-entropy of the logits, so its shift can't be told")
    return near[0]
