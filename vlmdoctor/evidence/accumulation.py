"""How the model's loss depends on the number of labels that transformers' Trainer passes to it."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.loss.accumulation"
TIMES = 4


@dataclass(frozen=True, kw_only=True)
class Accumulation:
    """Losses of one batch, with and without the number of labels of its whole step as an argument.

    Attributes:
        model_class: The class whose forward the Trainer looks at.
        passed: Whether the Trainer passes `num_items_in_batch` to it, and so leaves the division to it.
        loss: The loss on its own.
        told_same: The loss when given the number of labels in this batch.
        told_more: The loss when given TIMES as many, as with TIMES micro-batches.
        raised: What it raised when given that number; None where it did not.
    """

    model_class: str
    passed: bool
    loss: float | None = None
    told_same: float | None = None
    told_more: float | None = None
    raised: str | None = None
