"""nothing-supervised: all labels are masked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Certainty, Finding, Fix, Inferred, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_parameters, sample_steps
from vlmdoctor.rules.places import counted

ENOUGH = 3
OFTEN, OFTEN_STEPS = 0.2, 20  # single masked batches are legal: the rate matters
FEWEST_ROWS = 10


@rule(
    "nothing-supervised",
    "LOSS103",
    explains=(
        "no-gradient",
        "weights-not-moving",
        "loss-not-falling",
        "initial-loss",
        "non-finite",
        "vanishing-gradient",
        "image-ignored",
        "accuracy-below-gate",
    ),
)
def nothing_supervised(data: Data | None, steps: Steps | None, forward: Forward | None) -> Iterator[Finding]:
    """All labels masked (-100): nothing is supervised.

    ## Why it matters
    The loss is 0 or NaN, gradients are zero, the weights do not change, and some trainers log `loss 0.0` as
    if all were well. Causes are a prompt longer than the maximum length, a chat template without `{%
    generation %}`, markers that don't occur in the tokenised text, and a tokenizer of another version ([TRL
    6668](https://github.com/huggingface/trl/issues/6668), [LLaVA
    1166](https://github.com/haotian-liu/LLaVA/issues/1166), [unsloth
    3198](https://github.com/unslothai/unsloth/issues/3198)).

    ## Confidence and false positives
    Where the labels of the batches were counted it is certain: no label was left at any step. Where they were
    not counted, the finding says so: it is reported if the loss is exactly 0 at every step while the
    gradients are zero or missing. Single masked batches are legal; from a fifth of at least twenty steps on
    it is a warning. Before a run, the labels of the batch and of some samples are counted: an error where
    there are several rows and none has a label, a warning where it is a single row, or a fifth of at least
    ten samples.

    ## What to do
    Print one batch's labels as text. If nothing is left, look at the template, the markers and the length.
    """
    labelled = data is not None and bool(data.labelled)
    seen = None if forward is None or labelled else forward.supervised_tokens
    if steps is None and not labelled and seen is None:
        raise Unavailable("no labels beside input_ids were given")
    if data is not None and (found := _in_data(data)) is not None:
        yield found
    elif seen == 0:
        yield _in_the_loss()
    elif steps is not None:
        yield from _in_steps(steps)


def _in_data(data: Data) -> Finding | None:
    rows = data.labelled
    empty = [row for row in rows if not any(row.seen)]
    if not empty or (len(empty) < len(rows) and (len(rows) < FEWEST_ROWS or len(empty) < OFTEN * len(rows))):
        return None
    everything = len(empty) == len(rows)
    first = empty[0]
    limit = data.max_length
    if all(row.roles_known and not row.count("assistant") for row in empty):
        cause = "these rows contain no answer: the prompt fills them, as after truncation of long prompts"
    elif limit is not None and all(row.length == limit for row in empty):
        cause = f"they all have {limit} tokens, the maximum length: the answers are cut off"
    elif data.roles_unknown and data.tokenizer_given and "nowhere in the tokens" in data.roles_unknown:
        cause = f"{data.roles_unknown}: a mask that is made with it masks everything"
    elif any(row.count("assistant") for row in empty):
        cause = Inferred(
            "the rows contain answers and their labels are masked; what masked them was not established"
        )
    else:
        cause = Inferred("no label other than -100 is in the loss; what masked them was not established")
    return Finding(
        "all labels are masked (-100): nothing is supervised"
        if everything
        else f"{len(empty)} of {len(rows)} samples have no label at all",
        Severity.ERROR if everything and len(rows) > 1 else Severity.WARNING,
        at=("labels", *(row.name for row in empty[:4])),
        measured={"rows": len(rows), "rows_without_labels": len(empty), "tokens": first.length},
        threshold={"share_of_rows": OFTEN},
        cause=cause,
        fix=Fix(
            "look at what is supervised; then fix the template, the markers or the length",
            ("vlmdoctor look TARGET",),
        ),
    )


def _in_the_loss() -> Finding:
    return Finding(
        "every target equals the loss's ignore_index: nothing is supervised",
        Severity.ERROR,
        at=("the loss",),
        measured={"targets_that_count": 0},
        cause="all targets of cross_entropy equal its ignore_index; the reason was not established",
        certainty=Certainty.INFERRED,
        fix=Fix("look at the targets of the loss", ("print((targets != ignore_index).sum())",)),
    )


def _in_steps(steps: Steps) -> Iterator[Finding]:
    counts = [s.supervised_tokens for s in steps.steps if s.supervised_tokens is not None]
    empty = sum(1 for count in counts if count == 0)
    losses = [loss for _, loss in steps.losses]
    flowing = any(track.with_gradient > track.zero_gradient for track in steps.tracks)
    flowing = flowing or any(s.grad_norm for s in steps.sampled)
    cause: str
    if len(counts) >= ENOUGH and empty == len(counts):
        message, severity = "all labels are masked (-100): nothing is supervised", Severity.ERROR
        over = counted(len(counts), "step")
        cause = Inferred(f"not one label other than -100 in {over}; what masked them was not established")
    elif not counts and len(losses) >= ENOUGH and not any(losses) and steps.sampled and not flowing:
        message, severity = "the loss is exactly 0 and so are the gradients", Severity.ERROR
        cause = "as when every label is masked (-100); the labels themselves were not seen"
    elif len(counts) >= OFTEN_STEPS and empty >= OFTEN * len(counts):
        message = f"{empty} of {len(counts)} steps have no label at all"
        severity = Severity.WARNING
        cause = (
            "all labels of these batches are masked (-100), as when answers are cut off at the maximum length"
        )
    else:
        return
    yield Finding(
        message,
        severity,
        at=("labels",),
        measured={"steps": len(counts) or len(losses), "steps_without_labels": empty if counts else None},
        threshold={"share_of_steps": OFTEN},
        cause=cause,
        fix=Fix(
            "look at what the labels leave of the text; then fix the template, the markers or the length",
            ("print(tokenizer.decode([t for t in batch['labels'][0].tolist() if t != -100]))",),
        ),
        step=next(
            (s.step for s in steps.steps if s.supervised_tokens == 0 or (not counts and s.loss == 0)), None
        ),
    )


@nothing_supervised.bad
def all_masked() -> tuple[Parameters, Steps]:
    run = sample_steps(
        60,
        loss=lambda step: 0.0,
        track=lambda t: {"zero_gradient": t.samples, "grad_norm": 0.0, "moved": 0, "still": 0},
    )
    steps = tuple(
        dataclasses.replace(s, supervised_tokens=0, grad_norm=s.grad_norm and 0.0, layer_grad_norms={})
        for s in run.steps
    )
    return sample_parameters(), dataclasses.replace(run, steps=steps)


@nothing_supervised.good
def one_masked_batch() -> tuple[Parameters, Steps]:
    run = sample_steps()
    steps = tuple(
        dataclasses.replace(s, supervised_tokens=0, loss=0.0) if s.step == 33 else s for s in run.steps
    )
    return sample_parameters(), dataclasses.replace(run, steps=steps)


@nothing_supervised.bad
def all_masked_before_the_run() -> Data:
    return sample_data("miiiiuuumaaasmpp", "miiiiuumaasmpppp")


@nothing_supervised.bad
def all_targets_ignored() -> Forward:
    """As where a trainer makes the labels itself."""
    return Forward(loss=0.0, finite=True, logits_shape=(2, 8, 680), vocab_size=680, supervised_tokens=0)


@nothing_supervised.good
def one_row_without_labels() -> Data:
    return sample_data("miiiiuuumaaasmpp", "miiiiuumAASmpppp", "miiiiuumAASmpppp")


@nothing_supervised.good
def supervised() -> Data:
    return healthy_data()
