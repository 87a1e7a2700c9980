"""One forward pass on the user's batch: the loss, or what it raised and where."""

from __future__ import annotations

from dataclasses import dataclass

from vlmdoctor.evidence.failure import Failure
from vlmdoctor.evidence.rotary import Rotary

DEPTH = "forward"
PROBE = "vlmdoctor.probes.forward"


@dataclass(frozen=True, kw_only=True)
class Forward:
    """What one forward pass gave.

    Attributes:
        loss: The loss; None where the model gave none.
        finite: Whether loss and logits are free of NaN and infinity; None where there are neither.
        logits_shape: The shape of the logits; None where unknown.
        vocab_size: Rows of the output head; None where unknown.
        supervised_tokens: Labels that the loss sees; None where neither it nor the batch tells.
        training: Whether the model was in training mode.
        failure: What the forward pass raised.
        rotary: The rotary table that clashed with a query, where that is what it raised.
    """

    loss: float | None = None
    finite: bool | None = None
    logits_shape: tuple[int, ...] | None = None
    vocab_size: int | None = None
    supervised_tokens: int | None = None
    training: bool = False
    failure: Failure | None = None
    rotary: Rotary | None = None
