"""What torch's loss functions are given in one forward pass, and how their results make up the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.forward import passed

if TYPE_CHECKING:
    from vlmdoctor.engine import Gatherer
    from vlmdoctor.subject import Subject

DEPTH = "forward"


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class LossTerms:
    """All calls of one forward pass, in their order.

    Attributes:
        loss: The loss that came out.
        terms: The calls.
    """

    loss: float | None
    terms: tuple[Term, ...] = ()

    def needed(self) -> tuple[Term, ...]:
        """The calls; raises `Unavailable` where there were none."""
        if not self.terms:
            raise Unavailable("the loss is made without torch's cross-entropy, so it can't be looked into")
        return self.terms


def probe(subject: Subject, gather: Gatherer) -> LossTerms:
    """Listens to torch's loss functions in the one pass."""
    from vlmdoctor.evidence.one_pass import observed

    passed(gather)
    return observed(gather, "vlmdoctor.evidence.loss_listening")
