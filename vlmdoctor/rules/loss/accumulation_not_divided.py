"""accumulation-not-divided: the loss does not divide by num_items_in_batch, which the Trainer expects."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.evidence.accumulation import TIMES, Accumulation
from vlmdoctor.evidence.training_args import TrainingArgs
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("accumulation-not-divided", "LOSS320")
def accumulation_not_divided(arguments: TrainingArgs, accumulation: Accumulation) -> Iterator[Finding]:
    """`num_items_in_batch` is accepted and not used: gradient accumulation is not divided.

    ## Why it matters
    transformers' Trainer assumes that any forward with `**kwargs` divides its loss by the labels of the whole
    step, and does not divide itself. If the model ignores the number, loss and gradients are too large by the
    number of micro-batches, and gradient clipping cuts where it should not ([transformers
    34191](https://github.com/huggingface/transformers/issues/34191), [transformers
    35438](https://github.com/huggingface/transformers/issues/35438), [transformers
    37197](https://github.com/huggingface/transformers/issues/37197)).

    ## Confidence and false positives
    Measured: the loss was the same when `num_items_in_batch` was four times as large, or the forward pass
    raised. An error with transformers' `TrainingArguments`, whose Trainer does that; a warning where the
    arguments are a mapping, since the loop may be another. Nothing is reported without accumulation.

    ## What to do
    Compute the loss as a sum over labels divided by `num_items_in_batch`, or set
    `accepts_loss_kwargs = False` on the model's class, so that the Trainer divides.
    """
    seen = accumulation
    if not seen.passed or (seen.raised is None and arguments.accumulation < 2):
        return
    severity = Severity.ERROR if arguments.of_trainer else Severity.WARNING
    fix = Fix(
        "let the Trainer divide, or divide by num_items_in_batch",
        (
            f"{seen.model_class}.accepts_loss_kwargs = False",
            "loss = cross_entropy(logits, labels, reduction='sum') / num_items_in_batch",
        ),
    )
    if seen.raised is not None:
        if arguments.of_trainer:
            yield Finding(
                f"{seen.model_class} raises when the Trainer passes num_items_in_batch",
                severity,
                at=(f"{seen.model_class}.forward",),
                measured={"raised": seen.raised},
                threshold={"raised": None},
                cause="its forward has **kwargs, so that the Trainer passes the number, and a function that "
                "it calls does not accept it",
                fix=fix,
            )
        return
    known = seen.loss is not None and seen.told_same is not None and seen.told_more is not None
    if not known or not seen.loss or not _same(seen.told_more, seen.loss):
        return
    yield Finding(
        f"the loss ignores num_items_in_batch: gradients will be {arguments.accumulation} times too large",
        severity,
        at=(f"{seen.model_class}.forward",),
        measured={"loss": seen.loss, f"loss_for_{TIMES}_times_the_labels": seen.told_more},
        threshold={f"loss_for_{TIMES}_times_the_labels": seen.loss / TIMES},
        cause="its forward has **kwargs, so the Trainer leaves the division by the accumulated batches to "
        "the model"
        + ("" if arguments.of_trainer else "; assumed, not known: that transformers' Trainer is used"),
        fix=fix,
    )


def _same(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and math.isclose(one, other, rel_tol=1e-3)


@accumulation_not_divided.bad
def swallowed() -> tuple[Accumulation, TrainingArgs]:
    return Accumulation(
        model_class="MyVLM", passed=True, loss=4.6, told_same=4.6, told_more=4.6
    ), TrainingArgs(accumulation=8, of_trainer=True)


@accumulation_not_divided.bad
def passed_on_to_what_does_not_take_it() -> tuple[Accumulation, TrainingArgs]:
    raised = "TypeError: forward() got an unexpected keyword argument 'num_items_in_batch'"
    return Accumulation(model_class="MyVLM", passed=True, loss=4.6, raised=raised), TrainingArgs(
        of_trainer=True
    )


@accumulation_not_divided.good
def divided() -> tuple[Accumulation, TrainingArgs]:
    return Accumulation(
        model_class="LlavaForConditionalGeneration", passed=True, loss=4.6, told_same=4.6, told_more=1.15
    ), TrainingArgs(accumulation=8, of_trainer=True)


@accumulation_not_divided.good
def divided_by_the_trainer() -> tuple[Accumulation, TrainingArgs]:
    return Accumulation(model_class="MyVLM", passed=False), TrainingArgs(accumulation=8, of_trainer=True)
