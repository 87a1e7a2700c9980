"""Whether one batch can be overfit: with the user's optimizer, and if not, with another one."""

from __future__ import annotations

import math
from dataclasses import dataclass

DEPTH = "steps"
PROBE = "vlmdoctor.probes.training.overfit"
FALLS = 0.97  # of the first loss: an optimizer that is below it is on its way
LEARNED = 0.9  # of the first loss: what is below it on one batch again and again has learned
JUMP = 4.0  # times the first loss


@dataclass(frozen=True, kw_only=True)
class Try:
    """Some steps on one batch: the loss before each of them, and the learning rate.

    Attributes:
        rate: The learning rate; that of the first group, and None where it is not known.
        losses: The loss before each step; NaN and infinity end it.
    """

    rate: float | None
    losses: tuple[float, ...]

    @property
    def best(self) -> float:
        """The lowest loss; NaN is none."""
        return min((loss for loss in self.losses if loss == loss), default=float("inf"))

    @property
    def falls(self) -> bool:
        """Whether the loss came down at all."""
        return bool(self.losses) and self.best < FALLS * self.losses[0]

    @property
    def learned(self) -> bool:
        """Whether the loss came down by a tenth."""
        return bool(self.losses) and self.best < LEARNED * self.losses[0]


@dataclass(frozen=True, kw_only=True)
class Overfit:
    """What was tried on one batch.

    Attributes:
        users: With the user's optimizer (and scheduler); None without one.
        ours: With AdamW at several rates, the one that learned last; empty where the user's optimizer does.
        scheduled: Whether a scheduler was given, which may begin with a warm-up.
        kind: The class of the user's optimizer.
    """

    users: Try | None
    ours: tuple[Try, ...] = ()
    scheduled: bool = False
    kind: str = ""

    @property
    def learns(self) -> Try | None:
        """A try of ours that learned the batch."""
        return next((attempt for attempt in self.ours if attempt.learned), None)


def runs_away(attempt: Try) -> bool:
    """Whether the loss jumped far above where it began and did not come back below it.

    A step that is far too long leaves the model beyond all slopes: it may sit at the loss of a blind guess.
    """
    if len(attempt.losses) < 2:
        return False
    first, last = attempt.losses[0], attempt.losses[-1]
    if not all(math.isfinite(loss) for loss in attempt.losses):
        return True
    return last > 2 * first + 1 or (max(attempt.losses) > JUMP * first + 1 and last > 0.95 * first)
