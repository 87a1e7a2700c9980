"""masked-labels-counted: tokens with masked labels are in the loss."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("masked-labels-counted", "LOSS378", explains=("initial-loss", "batch-not-learned"))
def masked_labels_counted(form: LossForm) -> Iterator[Finding]:
    """Masked labels (-100) are in the loss.

    ## Why it matters
    -100 masks a token only where the loss checks for it. `labels.clamp(min=0)` for a `gather`, a custom loss,
    or another `ignore_index` train the model to predict token 0 at the prompt, the image and the padding.
    Since those are most of a row, that is most of what the model learns.

    ## Confidence and false positives
    Which positions are in the loss is measured: the gradient at the logits is not zero there. These positions
    are compared with the labels of each row that are not -100. It is a warning, since a loss may have terms
    for other tokens on purpose.

    ## What to do
    Mask the loss as well as the labels, for instance with `ignore_index=-100`.
    """
    if not form.cross_entropy or not form.labels or len(form.labels) != len(form.weights.rows):
        return
    rows = [
        row
        for row, (counted, labels) in enumerate(zip(form.weights.rows, form.labels, strict=True))
        if labels and counted > labels + 1
    ]
    if len(rows) * 2 <= len(form.labels):
        return
    supervised = sum(form.labels)
    yield Finding(
        f"masked labels are in the loss: {form.weights.tokens} tokens in the loss, {supervised} labels not "
        "masked",
        Severity.WARNING,
        at=("labels", *(f"row {row} of the batch" for row in rows[:4])),
        measured={"counted": form.weights.tokens, "labels": supervised},
        threshold={"counted": supervised},
        cause="labels of -100 are not left out of the loss: they are clamped, or the loss ignores another "
        "number; assumed: no loss is intended for those tokens",
        fix=Fix(
            "leave masked labels out of the loss",
            ("loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)",),
        ),
    )


@masked_labels_counted.bad
def clamped_at_zero() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.6, tokens=46, rows=(23, 23), total=1.0, lightest=1 / 46, heaviest=1 / 46),
        positions=48,
        labels=(6, 6),
    )


@masked_labels_counted.good
def left_out() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.6, tokens=12, rows=(6, 6), total=1.0, lightest=1 / 12, heaviest=1 / 12),
        positions=48,
        labels=(6, 6),
    )
