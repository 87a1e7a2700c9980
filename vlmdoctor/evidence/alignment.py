"""Which token the prediction at each position is compared with, inferred from the model's loss."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.loss.alignment"


@dataclass(frozen=True, kw_only=True)
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
