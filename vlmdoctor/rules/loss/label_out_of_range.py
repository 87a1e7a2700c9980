"""label-out-of-range: labels that the output head has no row for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_row
from vlmdoctor.rules.places import counted


@rule("label-out-of-range", "LOSS307", explains=("forward-raises", "image-tokens-supervised"))
def label_out_of_range(data: Data, forward: Forward | None) -> Iterator[Finding]:
    """Label out of range: negative without being -100, or beyond the output head.

    ## Why it matters
    On a CPU the loss raises `Target 128256 is out of bounds`; on a GPU a device-side assert kills the process
    without naming the label. Causes are -1 used for -100 ([TRL
    1802](https://github.com/huggingface/trl/issues/1802)), a head with fewer rows than the embedding, as
    Mllama's, whose image token has no output row ([transformers
    33819](https://github.com/huggingface/transformers/issues/33819)), and tokens that were added without
    resizing.

    ## Confidence and false positives
    The labels and the head's rows were counted. Where the model's own forward pass accepted these labels and
    gave a finite loss, its loss ignores them, and nothing is reported. More rows in the embedding than in the
    head are no fault by themselves.

    ## What to do
    Mask with -100; resize the embeddings if the tokens should be learned.
    """
    rows = data.needing_labels()
    limit = data.words.head_rows
    if limit is None:
        raise Unavailable("the rows of the output head are not known")
    passed = forward is not None and forward.failure is None and forward.finite is not False
    if passed:
        rows = tuple(row for row in rows if row.origin != "batch")
    wrong = Counter(
        label
        for row in rows
        for label in row.labels or ()
        if label != IGNORE_INDEX and not 0 <= label < limit
    )
    if not wrong:
        return
    value, often = wrong.most_common(1)[0]
    at = next(
        f"{row.name}, token {(row.labels or ()).index(value)}" for row in rows if value in (row.labels or ())
    )
    negative = value < 0
    if negative:
        cause = f"{value} is not a token id, and the loss ignores {IGNORE_INDEX} only"
    elif value in data.words.image_ids:
        cause = (
            f"{data.words.named(value)} is an image placeholder; the output head has {limit} rows, and none "
            "for this token"
        )
    else:
        cause = f"the output head has {limit} rows, and the token id is beyond them"
    yield Finding(
        f"{counted(sum(wrong.values()), 'label')} out of range: {value} occurs {often} times"
        if often > 1
        else f"{counted(sum(wrong.values()), 'label')} out of range: {value}",
        Severity.ERROR,
        at=("labels", at),
        measured={"labels_out_of_range": dict(wrong.most_common(4))},
        threshold={"head_rows": limit},
        cause=cause,
        fix=Fix(
            "mask them"
            if negative or value in data.words.image_ids
            else "resize the embeddings, or mask them",
            (f"labels[labels == {value}] = {IGNORE_INDEX}",)
            if negative or value in data.words.image_ids
            else ("model.resize_token_embeddings(len(tokenizer))",),
        ),
    )


@label_out_of_range.bad
def minus_one() -> Data:
    row = sample_row("miiiiuuumAAAS")
    return sample_data(
        sample_row("miiiiuuumAAAS", labels=tuple(-1 if v == IGNORE_INDEX else v for v in row.labels or ()))
    )


@label_out_of_range.bad
def no_row_for_the_token() -> Data:
    row = sample_row("miiiiuuumAAAS")
    return sample_data(sample_row("miiiiuuumAAAS", labels=(*(row.labels or ())[:-1], 104)))


@label_out_of_range.good
def all_in_range() -> Data:
    return healthy_data()
