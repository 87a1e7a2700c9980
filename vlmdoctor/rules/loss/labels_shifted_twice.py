"""labels-shifted-twice: the model is trained to predict the token after the next one."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.alignment import Alignment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("labels-shifted-twice", "LOSS301")
def labels_shifted_twice(alignment: Alignment) -> Iterator[Finding]:
    """Labels shifted twice, by the data and by the model: the model learns to skip a token.

    ## Why it matters
    The loss falls to something plausible, and the model writes every other token. Models of transformers
    shift the labels themselves, so a collator that shifts them too does it twice ([transformers
    44642](https://github.com/huggingface/transformers/issues/44642)); some models did it twice on their own
    ([transformers 47394](https://github.com/huggingface/transformers/issues/47394)).

    ## Confidence and false positives
    Both shifts are measured: at least 90% of the labels are the token so many positions ahead, and of the
    cross-entropies of the model's own logits exactly one equals its loss. Other losses (with smoothing,
    weights or extra terms) are not judged. Models that predict several tokens ahead on purpose give their
    usual loss for the next token and are not reported. Features before the text (a prefix, an image) are
    counted: a loss that takes its predictions from the start of the sequence is off by that many positions.

    ## What to do
    Shift in one place only: give labels that equal the input ids, with -100 where nothing should be learned.
    """
    if alignment.ahead < 2:
        return
    if alignment.label_shift > 0 and alignment.model_shift > 0:
        cause = (
            f"the labels are already {alignment.label_shift} ahead of the ids, and the model's loss "
            f"shifts them by {alignment.model_shift} more"
        )
    elif alignment.front:
        cause = (
            f"{alignment.front} features come before the text, and the loss takes the predictions from the "
            "start of the sequence, as if there were none"
        )
    elif alignment.model_shift > 1:
        cause = (
            "the labels are at the positions of their own ids, and the model's loss shifts them by "
            f"{alignment.model_shift}"
        )
    else:
        cause = f"the labels are {alignment.label_shift} ahead of the ids; the model does not shift them"
    yield Finding(
        f"labels are shifted twice: the model learns the token {alignment.ahead} positions ahead, and never "
        "the next one",
        Severity.ERROR,
        at=("labels",),
        measured={
            "labels_ahead_by": alignment.label_shift,
            "loss_shifts_by": alignment.model_shift,
            "loss": alignment.loss,
            "labels_explained": alignment.matched,
        },
        threshold={"places_ahead": 1},
        cause=cause,
        fix=_fix(alignment),
    )


def _fix(alignment: Alignment) -> Fix:
    if alignment.front:
        return Fix(
            "drop the predictions before the text, all but the last of them",
            (f"logits = logits[:, {alignment.front} - 1 : -1]  # predicts the text's tokens",),
        )
    if alignment.label_shift > 0:
        return Fix(
            "shift once: give the model labels at the positions of their own tokens",
            ("labels = input_ids.clone()  # then -100 for what should not be learned",),
        )
    return Fix(
        "shift once in the model's loss; until then, compute the loss from its logits",
        ("loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())",),
    )


@labels_shifted_twice.bad
def shifted_by_the_model_twice() -> Alignment:
    return Alignment(
        loss=4.9, model_shift=2, label_shift=0, losses=((0, 4.8), (1, 4.61), (2, 4.9)), matched=1.0
    )


@labels_shifted_twice.bad
def shifted_by_the_collator_too() -> Alignment:
    return Alignment(
        loss=4.61, model_shift=1, label_shift=1, losses=((0, 4.8), (1, 4.61), (2, 4.9)), matched=1.0
    )


@labels_shifted_twice.bad
def a_prefix_forgotten() -> Alignment:
    return Alignment(loss=4.9, model_shift=10, label_shift=0, losses=(), matched=1.0, front=10)


@labels_shifted_twice.good
def shifted_by_the_model() -> Alignment:
    return Alignment(
        loss=4.61, model_shift=1, label_shift=0, losses=((0, 4.8), (1, 4.61), (2, 4.9)), matched=1.0
    )


@labels_shifted_twice.good
def shifted_by_the_collator() -> Alignment:
    return Alignment(
        loss=4.8, model_shift=0, label_shift=1, losses=((0, 4.8), (1, 4.61), (2, 4.9)), matched=1.0
    )
