"""softmax-twice: cross-entropy takes the softmax of what are probabilities already."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("softmax-twice", "LOSS372", explains=("batch-not-learned", "loss-not-falling", "initial-loss"))
def softmax_twice(form: LossForm) -> Iterator[Finding]:
    """The logits are probabilities, and the loss takes their softmax once more.

    ## Why it matters
    `cross_entropy` wants logits. Of probabilities, which lie between 0 and 1, its softmax makes an almost
    even distribution: a perfect prediction still costs ln(e + V - 1) - 1, which is nearly what guessing
    costs, and the gradients are tiny. The model trains, slowly, towards a floor that looks like a plateau.

    ## How sure it is
    Measured: no logit is negative, those of every position add up to 1, and the loss's gradient there is that
    of a cross-entropy which took their softmax. A loss that takes their logarithm instead is not reported,
    nor are log-probabilities, of which the softmax changes nothing.

    ## What to do
    Leave the softmax out of the head, or take `nll_loss(probabilities.log(), labels)`.
    """
    if not form.probabilities or not form.cross_entropy or form.weights.total <= 0:
        return
    floor = math.log(math.e + form.vocabulary - 1) - 1
    yield Finding(
        f"the softmax is taken twice: the loss can't fall below {floor:.2f}, and guessing costs "
        f"{math.log(form.vocabulary):.2f}",
        Severity.ERROR,
        at=("the logits",),
        measured={"sum_of_the_logits": 1.0, "loss": form.weights.loss},
        threshold={"loss_of_a_perfect_model": floor},
        cause="the head puts out probabilities (none is negative, each position's add up to 1), and the "
        "cross-entropy treats them as logits: both were measured",
        fix=Fix("hand the cross-entropy what comes before the softmax", ("return self.lm_head(hidden)",)),
    )


@softmax_twice.bad
def softmax_in_the_head() -> LossForm:
    return LossForm(
        Weights(5.29, 12, (6, 6), 1.0, 1 / 12, 1 / 12), vocabulary=200, probabilities=True, labels=(6, 6)
    )


@softmax_twice.good
def logarithm_of_probabilities() -> LossForm:
    return LossForm(
        Weights(5.29, 12, (6, 6), 1.0, 1 / 12, 1 / 12, residual=1.0), vocabulary=200, probabilities=True
    )
