"""rows-not-in-loss: some rows of the batch have labels, and the loss does not depend on them."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

FEWEST = 2  # labels: a model may shift once more than it should


@rule("rows-not-in-loss", "LOSS374")
def rows_not_in_loss(form: LossForm) -> Iterator[Finding]:
    """Rows with labels are not in the loss.

    ## Why it matters
    An index that was meant for a shape (`logits[0]`), a loop that returns in its first iteration, or a mask
    of another row drops part of every batch. Nothing raises, the loss looks right and falls; the rest of the
    data is never learned.

    ## Confidence and false positives
    Measured: no logit of those rows has a gradient, though the rows have labels and their predictions are not
    so confident that a gradient would vanish. Batches with weights for their rows are not judged.

    ## What to do
    Flatten batch and sequence together: `cross_entropy(logits.flatten(0, 1), labels.flatten())`.
    """
    rows = form.weights.rows
    if len(rows) != len(form.labels) or form.weighted:
        return
    labelled = [row for row, count in enumerate(form.labels) if count >= FEWEST and row not in form.sure_of]
    lost = [row for row in labelled if not rows[row]]
    if not lost or not any(rows):
        return
    labels = sum(form.labels[row] for row in lost)
    yield Finding(
        f"{len(lost)} of {len(rows)} rows are not in the loss: their {labels} labels are never learned",
        Severity.ERROR,
        at=tuple(f"row {row}" for row in lost[:8]),
        measured={"tokens_in_the_loss": list(rows[:16]), "labels": list(form.labels[:16])},
        threshold={"rows_without_gradient": 0},
        cause="no logit of those rows gets a gradient from the loss: they are dropped between the logits "
        "and the loss",
        fix=Fix(
            "flatten batch and sequence together",
            ("loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())",),
        ),
    )


@rows_not_in_loss.bad
def first_row_only() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.3, tokens=6, rows=(6, 0), total=1.0, lightest=1 / 6, heaviest=1 / 6),
        labels=(6, 6),
    )


@rows_not_in_loss.good
def row_without_labels() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.3, tokens=6, rows=(6, 0), total=1.0, lightest=1 / 6, heaviest=1 / 6),
        labels=(6, 0),
    )


@rows_not_in_loss.good
def row_that_is_known_by_heart() -> LossForm:
    return LossForm(
        weights=Weights(loss=5.3, tokens=6, rows=(6, 0), total=1.0, lightest=1 / 6, heaviest=1 / 6),
        labels=(6, 6),
        sure_of=(1,),
    )
