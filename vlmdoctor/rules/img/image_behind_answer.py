"""image-behind-answer: the image comes after all supervised tokens."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.evidence.image_placement import ImagePlacement, PlacedImage
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data


@rule("image-behind-answer", "IMG346", explains=("no-gradient", "image-without-effect", "image-ignored"))
def image_behind_answer(data: Data, landing: ImagePlacement, backward: Backward | None) -> Iterator[Finding]:
    """Image placeholders come after the answer, so that no answer attends to them.

    ## Why it matters
    In a causal model a token attends to earlier tokens only. An image that a chat template, a collator or a
    sort of the message's parts has put after the answer is visible to no answer: the model learns to answer
    without its images, and neither vision encoder nor projector ever gets a gradient
    ([gemma3-object-detection 40](https://github.com/ariG23498/gemma3-object-detection/issues/40)).

    ## Confidence and false positives
    Positions of placeholders and labels are compared, row by row. It is reported only where no row with an
    image has a label after one, and where image features enter the text at their placeholders. Models with
    cross-attention to the image are not judged, nor are models whose vision part or projector gets a
    gradient: the image may be what is learned.

    ## What to do
    Put the image before the answer, into the user's turn.
    """
    seeing = [g for g in backward.gradients if g.role in ("vision", "projector")] if backward else []
    if any(g.present and not g.zero for g in seeing) or not any(one.tokens for one in landing.images):
        return
    rows = [row for row in data.needing_labels() if row.count("image")]
    rows = [row for row in rows if row.origin == "batch" and any(row.seen)]
    if not rows or not all(_is_behind(row) for row in rows):
        return
    row = rows[0]
    yield Finding(
        f"the image comes after the answer in all {len(rows)} rows that have one: no answer can attend to it",
        Severity.ERROR,
        at=(row.name, f"token {row.roles.index('image')}"),
        measured={"first_placeholder": row.roles.index("image"), "last_label": _last(row)},
        threshold={"first_placeholder": f"before {_last(row)}"},
        cause="the placeholders come after the last supervised token of their row",
        fix=Fix("put the image before the answer, as the chat template does for the user's turn"),
    )


def _is_behind(row: Row) -> bool:
    return _last(row) <= row.roles.index("image")


def _last(row: Row) -> int:
    return max(i for i, seen in enumerate(row.seen) if seen)


def _landing() -> ImagePlacement:
    return ImagePlacement(
        module="model.layers.0", images=(PlacedImage(image=0, row=0, first=9, last=12, tokens=4),)
    )


@image_behind_answer.bad
def sorted_to_the_end() -> tuple[Data, ImagePlacement]:
    return sample_data("muuuumAAASiiii", "muuumAASiiii"), _landing()


@image_behind_answer.good
def in_front() -> tuple[Data, ImagePlacement]:
    return healthy_data(), _landing()


@image_behind_answer.good
def a_second_image_at_the_end() -> tuple[Data, ImagePlacement]:
    return sample_data("miiiiuumAASuiiii"), _landing()
