"""What torch's loss functions are given in one forward pass, and how their results make up the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmdoctor.errors import Unavailable

DEPTH = "forward"
PROBE = "vlmdoctor.probes.loss.terms"


@dataclass(frozen=True, kw_only=True)
class Term:
    """One call of a loss function of torch.

    Attributes:
        function: `cross_entropy`, `nll_loss` or `binary_cross_entropy_with_logits`.
        places: How many targets it was given, hidden ones among them.
        targets: How many of them count.
        classes: Over how many classes; 1 where each number is judged for itself.
        reduction: `mean`, `sum` or `none`.
        total: The sum over what counts; None where the result does not tell.
        low, high: The smallest and the largest number that it was given for what counts.
        sums: The smallest and largest sum over the classes.
        log_sums: The same of the logarithm of the sum of exponentials: 0 for log-probabilities.
        rows: For how many targets that was looked at.
    """

    function: str
    places: int
    targets: int
    classes: int
    reduction: str
    total: float | None
    low: float
    high: float
    sums: tuple[float, float]
    log_sums: tuple[float, float]
    rows: int

    @property
    def probabilities(self) -> bool:
        """Whether it was given probabilities: no number below 0, and over the classes they sum to 1."""
        whole = abs(self.sums[0] - 1) < 0.01 and abs(self.sums[1] - 1) < 0.01
        return self.rows >= 2 and self.classes >= 3 and self.low >= 0 and self.high <= 1.001 and whole


@dataclass(frozen=True, kw_only=True)
class Summed:
    """All calls of cross-entropy together.

    Attributes:
        loss: The loss that came out.
        total: The sum over all targets that count.
        targets: How many those are.
        places: How many targets there are, hidden ones among them.
    """

    loss: float
    total: float
    targets: int
    places: int

    @property
    def is_mean(self) -> bool:
        """Whether the loss is the mean over what counts."""
        return _same(self.loss, self.total / self.targets)

    @property
    def is_sum(self) -> bool:
        """Whether it is the sum."""
        return not self.is_mean and _same(self.loss, self.total)

    @property
    def is_mean_over_all(self) -> bool:
        """Whether it is divided by all places, a good part of which are hidden."""
        hidden = self.targets < 0.95 * self.places
        return hidden and not self.is_mean and not self.is_sum and _same(self.loss, self.total / self.places)


CLOSE = 1e-4  # relative


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= CLOSE * abs(other)


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """All calls of one forward pass, in their order.

    Attributes:
        loss: The loss that came out.
        terms: The calls.
    """

    loss: float | None
    terms: tuple[Term, ...] = ()

    def summed(self) -> Summed | None:
        """All calls together; None where there were none, or their results do not tell their sum."""
        totals = [term.total for term in self.terms]
        if not totals or self.loss is None or not math.isfinite(self.loss) or None in totals:
            return None
        if any(term.function == "binary_cross_entropy_with_logits" for term in self.terms):
            return None
        total = sum(total or 0.0 for total in totals)
        targets, places = sum(t.targets for t in self.terms), sum(t.places for t in self.terms)
        return (
            Summed(loss=self.loss, total=total, targets=targets, places=places)
            if targets and total > 0
            else None
        )

    def needed(self) -> tuple[Term, ...]:
        """The calls; raises `Unavailable` where there were none."""
        if not self.terms:
            raise Unavailable("the loss is made without torch's cross-entropy, so it can't be looked into")
        return self.terms
