"""Whether one batch can be learned by heart: with the user's optimizer, and if not, with one of our own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.forward import Forward

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "steps"
FALLS = 0.97  # of the first loss: an optimizer that is below it is on its way
LEARNED = 0.9  # of the first loss: what is below it on one batch again and again has learned
RATES = (3e-3, 3e-4, 3e-2, 3e-5)  # small models take the first, large and trained ones the others
STEPS = 24
JUMP = 4.0  # times the first loss
SECONDS = 30.0  # no further step is taken after so long


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


def probe(subject: Subject, gather: Callable[[type], Any]) -> Overfit:
    """Reads what the trial steps gave; only where they did not learn does it take steps of its own."""
    from vlmdoctor.evidence.overfit_tries import our_tries
    from vlmdoctor.evidence.steps import Steps
    from vlmdoctor.subject import optimizers
    from vlmdoctor.unchanged import unchanged
    from vlmdoctor.watching.nonfinite import communicates

    forward: Forward = gather(Forward)
    backward: Backward = gather(Backward)
    if backward.failure is not None:
        raise Unavailable("the backward pass raises")
    if not forward.finite or not forward.loss or forward.loss < 0:
        raise Unavailable("there is no positive loss to bring down")
    if not any(g.present and g.finite and not g.zero for g in backward.gradients):
        raise Unavailable("no parameter gets a gradient")
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    given = optimizers(subject.optimizer)
    users = None
    if given:
        steps: Steps = gather(Steps)
        rate = given[0].param_groups[0].get("lr") if given[0].param_groups else None
        losses = tuple(s.loss for s in steps.steps if s.loss is not None)
        users = Try(None if rate is None else float(rate), losses)
    kind = type(given[0]).__name__ if given else ""
    scheduled = bool(optimizers(subject.lr_scheduler))
    if users is not None and users.falls and not runs_away(users):
        return Overfit(users, scheduled=scheduled, kind=kind)
    with unchanged(subject):
        return Overfit(users, our_tries(subject), scheduled, kind)


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
