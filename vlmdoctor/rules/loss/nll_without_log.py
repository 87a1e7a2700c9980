"""nll-without-log: the input of nll_loss is not log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.loss_terms import LossTerms, Term
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

ALLOWED = 0.05  # of the logarithm of a sum that is 1


@rule("nll-without-log", "LOSS141", explains=("negative-loss", "loss-not-falling", "initial-loss"))
def nll_without_log(terms: LossTerms) -> Iterator[Finding]:
    """`nll_loss` gets logits or probabilities instead of log-probabilities.

    ## Why it matters
    `nll_loss` only picks the number of the right class and flips its sign. With logits there is no cost for
    the wrong classes: the loss falls without bound while all logits grow. With probabilities the loss is
    between -1 and 0 and its gradient is small.

    ## Confidence and false positives
    The numbers were measured where they reached torch's function: for log-probabilities their exponentials
    sum to at most 1. It is an error where they sum to more for every target that was read.

    ## What to do
    Take `log_softmax` first, or use `cross_entropy`, which does both.
    """
    for term in terms.needed():
        if term.function != "nll_loss" or term.classes < 2 or term.log_sums[0] <= ALLOWED:
            continue
        what = "probabilities" if term.probabilities else "logits"
        yield Finding(
            f"nll_loss gets {what} instead of log-probabilities",
            Severity.ERROR,
            at=("the input of nll_loss",),
            measured={
                "lowest": term.low,
                "highest": term.high,
                "log_of_summed_exponentials": term.log_sums[0],
            },
            threshold={"log_of_summed_exponentials": 0.0},
            cause="a softmax without its logarithm comes before it"
            if term.probabilities
            else "no log_softmax comes before it: the exponentials of its input sum to more than 1",
            fix=Fix("use cross_entropy on the logits", ("loss = F.cross_entropy(logits, labels)",)),
        )
        return


def _sample(low: float, high: float, total: float, log_sum: float) -> LossTerms:
    term = Term(
        function="nll_loss",
        places=12,
        targets=12,
        classes=680,
        reduction="mean",
        total=-1.0,
        low=low,
        high=high,
        sums=(total, total),
        log_sums=(log_sum, log_sum),
        rows=12,
    )
    return LossTerms(loss=-1.0 / 12, terms=(term,))


@nll_without_log.bad
def logits() -> LossTerms:
    return _sample(-1.5, 1.5, 3.0, 6.6)


@nll_without_log.bad
def probabilities() -> LossTerms:
    return _sample(0.0, 0.1, 1.0, 6.52)


@nll_without_log.good
def log_probabilities() -> LossTerms:
    return _sample(-9.0, -0.1, -4400.0, 1e-6)
