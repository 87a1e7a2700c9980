"""image-tokens-supervised: image tokens are among the supervised tokens."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.data import Data, Row, count
from vlmdoctor.evidence.wiring import Wiring
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import IMAGE, healthy_data, sample_data, sample_row

MOST = 0.5


@rule("image-tokens-supervised", "LOSS303", explains=("padding-supervised", "prompt-supervised"))
def image_tokens_supervised(data: Data, wiring: Wiring | None) -> Iterator[Finding]:
    """Image tokens not masked in labels.

    ## Why it matters
    An image takes hundreds of placeholders, all with the same id. With `labels = input_ids.clone()` they are
    most of the supervised tokens: the loss falls at once, since they are easy to predict, and little of it is
    about the answer ([Transformers-Tutorials
    511](https://github.com/NielsRogge/Transformers-Tutorials/issues/511): 95% of all labels). A collator that
    puts the image id where padding should be masked does the same ([smol-vision
    11](https://github.com/merveenoyan/smol-vision/issues/11)).

    ## Confidence and false positives
    The labels were counted, and the ids of placeholders are read from the model's own configuration. It is an
    error where image tokens are more than half of all supervised tokens, else a warning. Models that generate
    images as tokens should learn such ids: ignore this rule for them. Where the loss is torch's
    cross-entropy, it is measured whether the loss of placeholders counts: a mask of one's own is as
    good as -100.

    ## What to do
    Set the labels of the placeholders to -100.
    """
    rows = data.needing_labels()
    if wiring is not None and set(data.words.image_ids) & wiring.left_out:
        return
    supervised = sum(sum(row.seen) for row in rows)
    placeholders = count(rows, "image", supervised=True)
    images = set(data.words.image_ids)
    elsewhere = sum(
        seen and label in images and role != "image"
        for row in rows
        for seen, label, role in zip(row.seen, row.labels or (), row.roles, strict=True)
    )
    wrong = placeholders + elsewhere
    if not wrong:
        return
    share = wrong / supervised
    where = tuple(row.name for row in rows if row.count("image", supervised=True))
    yield Finding(
        f"image tokens are not masked: {share:.0%} of supervised tokens",
        Severity.ERROR if share > MOST else Severity.WARNING,
        at=("labels", *(where[:4] or tuple(row.name for row in rows[:4]))),
        measured={
            "labels": supervised,
            "at_placeholders": placeholders,
            "placeholder_ids_at_other_tokens": elsewhere,
            "rows": len(rows),
        },
        threshold={"at_placeholders": 0},
        cause=(
            _unmasked(rows)
            if placeholders
            else "the image placeholder's id was written into the labels of other tokens, such as padding"
        ),
        fix=Fix(
            "mask their labels",
            tuple(f"labels[input_ids == {i}] = {IGNORE_INDEX}" for i in data.words.image_ids[:2])
            if placeholders
            else (f"labels[labels == {data.words.image_ids[0]}] = {IGNORE_INDEX}",),
        ),
    )


def _unmasked(rows: tuple[Row, ...]) -> str:
    if all(label == token for row in rows for label, token in zip(row.labels or (), row.ids, strict=True)):
        return "the labels are the ids themselves: nothing is masked"
    return "the labels of image placeholders are not masked"


@image_tokens_supervised.bad
def ids_as_labels() -> Data:
    return sample_data("mIIIIuuumAAASmpp", "mIIIIuumAASmpppp")


@image_tokens_supervised.bad
def image_id_for_padding() -> Data:
    row = sample_row("miiiiuuumAAASmpp")
    labels = tuple(
        IMAGE if role == "padding" else label for role, label in zip(row.roles, row.labels or (), strict=True)
    )
    return sample_data(sample_row("miiiiuuumAAASmpp", labels=labels))


@image_tokens_supervised.good
def masked() -> Data:
    return healthy_data()
