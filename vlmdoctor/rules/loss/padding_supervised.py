"""padding-supervised: padding is among the supervised tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.evidence.wiring import Wiring
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_row

MOST = 0.5


@rule("padding-supervised", "LOSS304")
def padding_supervised(data: Data, wiring: Wiring | None) -> Iterator[Finding]:
    """Padding not masked in labels.

    ## Why it matters
    Padding is easy to predict: the loss looks better than it is, and the shorter the answers, the less of it
    is about them. Where padding is the end-of-text token, the model learns to write that token again and
    again.

    ## Confidence and false positives
    Padding is what the attention mask hides, or, where the mask hides nothing, a run of the padding token
    before or after the text. Its labels were counted. It is an error where they are more than half of all
    labels, else a warning. Where the loss is torch's cross-entropy, it is measured whether the loss of
    padding counts: a mask of one's own is as good as -100.

    ## What to do
    Set the labels to -100 where the attention mask is 0, and not where the id is the padding token: the two
    differ as soon as padding and end of text share a token.
    """
    rows = data.needing_labels()
    if wiring is not None and data.words.padding_id in wiring.left_out:
        return
    wrong = sum(_wrong(row, data) for row in rows)
    # One end-of-text token after the answer is no padding, even if both are the same token.
    if data.words.pad_is_eos and wrong <= len(rows):
        return
    if not wrong:
        return
    supervised = sum(sum(row.seen) for row in rows)
    share = wrong / supervised
    yield Finding(
        f"padding is not masked in the labels: {share:.0%} of supervised tokens",
        Severity.ERROR if share > MOST else Severity.WARNING,
        at=("labels", *[row.name for row in rows if _wrong(row, data)][:4]),
        measured={"labels": supervised, "at_padding": wrong, "rows": len(rows)},
        threshold={"at_padding": 0},
        cause="the labels of padding are not masked",
        fix=_fix(rows, data),
        links=("https://github.com/merveenoyan/smol-vision/issues/11",),
    )


def _fix(rows: Sequence[Row], data: Data) -> Fix:
    padding = data.words.padding_id
    if padding is not None and all(row.attended is None for row in rows):
        # Where padding ends texts as well, the length of each text is needed.
        text = (
            "mask the labels of padding, but not those that end a text"
            if data.words.pad_is_eos
            else "mask them"
        )
        return Fix(text, (f"labels[labels == {padding}] = {IGNORE_INDEX}",))
    return Fix("mask the labels by the attention mask", (f"labels[attention_mask == 0] = {IGNORE_INDEX}",))


def _wrong(row: Row, data: Data) -> int:
    """Supervised padding, but for labels that hold an image's id, which have a rule of their own."""
    images = data.words.image_ids
    return sum(
        seen and role == "padding" and label not in images
        for seen, role, label in zip(row.seen, row.roles, row.labels or (), strict=True)
    )


@padding_supervised.bad
def ids_as_labels() -> Data:
    return sample_data("miiiiuuumAAASmPP", "miiiiuumAASmPPPP")


@padding_supervised.good
def masked() -> Data:
    return healthy_data()


@padding_supervised.good
def no_padding_at_all() -> Data:
    return sample_data(sample_row("miiiiuuumAAAS"))
