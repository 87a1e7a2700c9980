"""probabilities-as-logits: cross-entropy gets probabilities and applies the softmax again."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.evidence.loss_terms import LossTerms, Term
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

FEWEST_NUMBERS = 256  # between 0 and 1, to rule out chance


@rule(
    "probabilities-as-logits",
    "LOSS140",
    explains=("loss-not-falling", "initial-loss", "batch-not-learned"),
    formerly=("softmax-twice", "LOSS372"),
)
def probabilities_as_logits(terms: LossTerms | None, form: LossForm | None) -> Iterator[Finding]:
    """Softmax or sigmoid applied twice: before the loss and in it.

    ## Why it matters
    `cross_entropy` takes logits. With probabilities it takes the softmax of numbers between 0 and 1, which is
    almost flat: a perfect model still has nearly the loss of guessing, and the gradients are tiny. The loss
    falls a little, then stops falling, and nothing raises. `binary_cross_entropy_with_logits` after a sigmoid
    is the same mistake.

    ## Confidence and false positives
    The numbers that reached torch's own loss function were measured. Where none is below zero and they sum to
    1 for every target, they are probabilities: an error. Log-probabilities are right, since their softmax
    gives the probabilities back, and are not reported. Where all numbers are between 0 and 1 (at least 256 of
    them) it is a warning: a sigmoid does that, and so may similarities without a temperature.

    Where a loss does not call torch's functions, the gradient at the logits is measured instead: no logit is
    negative, those of every position add up to 1, and the gradient is that of a cross-entropy which took
    their softmax. A loss that takes their logarithm is not reported.

    ## What to do
    Give the loss the output of the last linear layer unchanged; apply the softmax only at inference.
    """
    called = terms.terms if terms is not None else ()
    if not called and form is None:
        raise Unavailable("the terms of the loss are not known")
    for term in called:
        if term.function == "nll_loss":
            continue
        if term.probabilities and term.function == "cross_entropy":
            yield _softmax(term)
            return
        spread = term.high - term.low
        if term.low >= 0 and term.high <= 1 and spread > 0.01 and term.rows * term.classes >= FEWEST_NUMBERS:
            yield _between(term)
            return
    if form is not None and form.probabilities and form.cross_entropy and form.weights.total > 0:
        yield _by_the_gradient(form)


def _softmax(term: Term) -> Finding:
    least = math.log(1 + (term.classes - 1) / math.e)
    return Finding(
        f"softmax is applied twice: cross_entropy gets probabilities over {term.classes:,} classes",
        Severity.ERROR,
        at=("the input of cross_entropy",),
        measured={"lowest": term.low, "highest": term.high, "sum_over_classes": list(term.sums)},
        threshold={"lowest_possible_loss": least, "loss_of_guessing": math.log(term.classes)},
        cause="a softmax comes before cross_entropy, which applies one itself: even a perfect model has a "
        f"loss of {least:.4f}",
        fix=Fix(
            "give cross_entropy the logits, without the softmax",
            ("logits = lm_head(hidden)", "loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())"),
        ),
    )


def _by_the_gradient(form: LossForm) -> Finding:
    floor = math.log(math.e + form.vocabulary - 1) - 1
    return Finding(
        f"softmax is applied twice: the loss can't fall below {floor:.2f}, and the loss of guessing is "
        f"{math.log(form.vocabulary):.2f}",
        Severity.ERROR,
        at=("the logits",),
        measured={"sum_of_the_logits": 1.0, "loss": form.weights.loss},
        threshold={"lowest_possible_loss": floor, "loss_of_guessing": math.log(form.vocabulary)},
        cause="the head outputs probabilities (none is negative, and they add up to 1 at each position), "
        "and the cross-entropy treats them as logits: both were measured",
        fix=Fix("give the cross-entropy the output before the softmax", ("return self.lm_head(hidden)",)),
    )


def _between(term: Term) -> Finding:
    return Finding(
        f"all inputs of {term.function} are between 0 and 1",
        Severity.WARNING,
        at=(f"the input of {term.function}",),
        measured={"lowest": term.low, "highest": term.high, "numbers": term.rows * term.classes},
        threshold={"lowest": "below 0"},
        cause="as after a sigmoid, which the loss applies itself, or as similarities without a temperature; "
        "which was not established",
        certainty=Certainty.INFERRED,
        fix=Fix("give the loss the output of the last layer unchanged", ("loss = loss_fn(logits, targets)",)),
    )


def _sample(**changed: object) -> LossTerms:
    usual: dict[str, object] = {
        "function": "cross_entropy",
        "places": 24,
        "targets": 12,
        "classes": 680,
        "reduction": "mean",
        "total": 12 * 6.5,
        "low": -1.4,
        "high": 1.6,
        "sums": (-20.0, 14.0),
        "log_sums": (6.6, 6.7),
        "rows": 12,
    }
    return LossTerms(loss=6.5, terms=(Term(**(usual | changed)),))  # type: ignore[arg-type]


@probabilities_as_logits.bad
def softmax_in_the_head() -> LossTerms:
    return _sample(low=0.0, high=0.03, sums=(1.0, 1.0), log_sums=(6.52, 6.53))


@probabilities_as_logits.bad
def sigmoid_before_the_loss() -> LossTerms:
    return _sample(low=0.2, high=0.9, sums=(310.0, 360.0), log_sums=(7.0, 7.1))


@probabilities_as_logits.good
def logits() -> LossTerms:
    return _sample()


@probabilities_as_logits.good
def log_probabilities() -> LossTerms:
    return _sample(low=-9.0, high=-0.01, sums=(-4000.0, -3900.0), log_sums=(0.0, 0.0))


@probabilities_as_logits.good
def a_head_of_zeros() -> LossTerms:
    return _sample(low=0.0, high=0.0, sums=(0.0, 0.0), log_sums=(6.52, 6.52))


@probabilities_as_logits.bad
def softmax_before_a_loss_of_ones_own() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.29, tokens=12, rows=(6, 6), total=1.0, lightest=1 / 12, heaviest=1 / 12),
        vocabulary=200,
        probabilities=True,
        labels=(6, 6),
    )


@probabilities_as_logits.good
def logarithm_of_probabilities() -> LossForm:
    return LossForm(
        weights=Weights(
            loss=5.29, tokens=12, rows=(6, 6), total=1.0, lightest=1 / 12, heaviest=1 / 12, residual=1.0
        ),
        vocabulary=200,
        probabilities=True,
    )
