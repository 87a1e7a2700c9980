"""labels-not-shifted: the model is trained to repeat its input token."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.alignment import Alignment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("labels-not-shifted", "LOSS302")
def labels_not_shifted(alignment: Alignment) -> Iterator[Finding]:
    """Labels not shifted: each prediction is compared with its own input token.

    ## Why it matters
    A model learns to copy its input within a few steps: the loss falls towards 0, and generated text is one
    token again and again. It happens where a hand-written loss leaves the shift to the data and the collator
    leaves it to the model, or where labels are shifted in the wrong direction.

    ## Confidence and false positives
    At least 90% of the labels are the token at their own position (or an earlier one), and of the
    cross-entropies of the model's own logits exactly one equals its loss: both are measured. Labels of
    masked-language models differ from the masked ids and are not reported.

    ## What to do
    Compare the prediction at position t with the token at t + 1, as in the line below.
    """
    if alignment.ahead > 0:
        return
    own = "its own input token" if alignment.ahead == 0 else "an earlier token"
    shift = alignment.label_shift
    labels = "are at the positions of their own ids" if shift == 0 else f"are shifted by {shift} from the ids"
    loss = (
        "does not shift them"
        if alignment.model_shift == 0
        else f"shifts them by {alignment.model_shift} only"
    )
    yield Finding(
        f"labels are not shifted: the model learns to repeat {own}, not to predict the next one",
        Severity.ERROR,
        at=("labels",),
        measured={
            "labels_ahead_by": shift,
            "loss_shifts_by": alignment.model_shift,
            "loss": alignment.loss,
            "labels_explained": alignment.matched,
        },
        threshold={"places_ahead": 1},
        cause=f"the labels {labels}, and the loss {loss}",
        fix=Fix(
            "shift once, in the loss",
            ("loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())",),
        ),
        links=("https://github.com/huggingface/transformers/issues/44642",),
    )


@labels_not_shifted.bad
def left_to_each_other() -> Alignment:
    return Alignment(
        loss=4.8, model_shift=0, label_shift=0, losses=((0, 4.8), (1, 4.61), (2, 4.9)), matched=1.0
    )


@labels_not_shifted.bad
def in_the_wrong_direction() -> Alignment:
    return Alignment(
        loss=4.61, model_shift=1, label_shift=-1, losses=((0, 4.8), (1, 4.61), (2, 4.9)), matched=1.0
    )


@labels_not_shifted.good
def shifted_by_the_model() -> Alignment:
    return Alignment(
        loss=4.61, model_shift=1, label_shift=0, losses=((0, 4.8), (1, 4.61), (2, 4.9)), matched=1.0
    )
