"""Which token the prediction at each place is compared with: told from the loss that the model gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmdoctor.evidence.forward import passed

if TYPE_CHECKING:
    from vlmdoctor.engine import Gatherer
    from vlmdoctor.subject import Subject

DEPTH = "forward"


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


def probe(subject: Subject, gather: Gatherer) -> Alignment:
    """Finds the shift whose cross-entropy is the loss that the one pass gave.

    Where the labels do not stand beside the ids, or the loss is more than their mean, the scores and the
    targets are taken from the very call of `cross_entropy`.
    """
    from vlmdoctor.evidence.one_pass import observed

    passed(gather)
    return observed(gather, "vlmdoctor.evidence.alignment_seen")
