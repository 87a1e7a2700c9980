"""left-padding-seen: padding before the text is not masked, so that the text attends to it."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_row


@rule("left-padding-seen", "MASK303")
def left_padding_seen(data: Data) -> Iterator[Finding]:
    """Left padding not masked: the text attends to it.

    ## Why it matters
    Every token attends to what comes before it. With padding there, the answer of a sample depends on how
    long the other samples of its batch are. With learned positions the padding shifts the positions too
    ([transformers 29583](https://github.com/huggingface/transformers/issues/29583)).

    ## Confidence and false positives
    Some row begins with at least three padding tokens, the mask is 1 there or there is none, and not every
    row begins so. Padding after the text is harmless in causal models, and is not reported. It is a warning.

    ## What to do
    Pass the tokenizer's attention mask to the model.
    """
    if data.words.padding_id is None:
        raise Unavailable("the padding token is not known")
    if not data.rows:
        raise Unavailable("no input_ids were given")
    if any(key.startswith("attention_mask") and len(shape) != 2 for key, shape in data.shapes):
        raise Unavailable("the attention mask is not one value for each token")
    rows = [row for row in data.rows if _seen(row)]
    if not rows or len(rows) == len(data.rows):
        return
    masked = any(row.attended is not None for row in rows)
    yield Finding(
        f"left padding is not masked: {len(rows)} of {len(data.rows)} rows begin with it",
        Severity.WARNING,
        at=("attention_mask", *(row.name for row in rows[:4])),
        measured={"rows": len(rows), "padding_tokens": max(row.runs[0][2] for row in rows)},
        cause="the attention mask is 1 there" if masked else "the batch has no attention mask",
        fix=Fix("pass the mask", (f"attention_mask = (input_ids != {data.words.padding_id}).long()",)),
    )


def _seen(row: Row) -> bool:
    """Whether the row begins with padding that attention sees."""
    if not row.runs or row.runs[0][0] != "padding":
        return False
    return row.attended is None or row.attended[0]


@left_padding_seen.bad
def no_mask() -> Data:
    rows = (
        sample_row("pppmiiiiuuumAAAS"),
        sample_row("miiiiuuuuuumAAAS", 1),
        sample_row("miiiiuuuuuumAAAS", 2),
    )
    return sample_data(*(sample_row("pppmiiiiuuumAAAS", attended=None), *rows[1:]))


@left_padding_seen.good
def masked() -> Data:
    return sample_data("pppmiiiiuuumAAAS", "miiiiuuuuuumAAAS")


@left_padding_seen.good
def on_the_right() -> Data:
    return healthy_data()
