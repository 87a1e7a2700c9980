"""nan-without-an-answer: one row without supervised tokens makes the whole loss NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("nan-without-an-answer", "LOSS375")
def nan_without_an_answer(form: LossForm) -> Iterator[Finding]:
    """NaN loss when one row has no supervised token.

    ## Why it matters
    Truncation at the maximum length leaves some rows without an answer. A mean per row divides 0 by 0 there;
    the NaN goes through the mean over rows into every weight, hours into a run ([Automodel
    3796](https://github.com/NVIDIA-NeMo/Automodel/issues/3796), [Open-Assistant
    2001](https://github.com/LAION-AI/Open-Assistant/issues/2001)).

    ## Confidence and false positives
    Measured: the labels of one row were masked with -100, which this batch uses itself, and the loss became
    NaN. It is a warning, since the given data may have an answer in every row. A batch without any supervised
    token gives NaN in torch's own cross-entropy, and is no fault.

    ## What to do
    Divide by `mask.sum(1).clamp(min=1)`, or take one mean over the tokens of all rows.
    """
    if form.without is None or math.isfinite(form.without.loss) or not math.isfinite(form.weights.loss):
        return
    yield Finding(
        f"one row without an answer makes the loss {form.without.loss}, {form.weights.loss:.4g} before",
        Severity.WARNING,
        at=(f"row {form.masked_row}",),
        measured={"loss": form.weights.loss, "loss_with_the_row_masked": form.without.loss},
        threshold={"loss_with_the_row_masked": "finite"},
        cause="the loss of each row is divided by its own supervised tokens, which may be none (inferred); "
        "assumed: such rows occur, as after truncation of long samples",
        certainty=Certainty.INFERRED,
        fix=Fix(
            "take one mean over the tokens of all rows, or never divide by zero",
            ("loss = (losses * mask).sum(1) / mask.sum(1).clamp(min=1)",),
        ),
    )


@nan_without_an_answer.bad
def mean_of_means() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.6, tokens=12, rows=(6, 6), total=1.0, lightest=1 / 12, heaviest=1 / 12),
        labels=(6, 6),
        masked_row=1,
        without=Weights(loss=math.nan, tokens=0, rows=()),
    )


@nan_without_an_answer.good
def one_mean() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.6, tokens=12, rows=(6, 6), total=1.0, lightest=1 / 12, heaviest=1 / 12),
        labels=(6, 6),
        masked_row=1,
        without=Weights(loss=5.5, tokens=6, rows=(6, 0), total=1.0, lightest=1 / 6, heaviest=1 / 6),
    )
