"""images-swapped: images of one row are at each other's placeholders, or one of them is used nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from vlmdoctor.evidence.image_placement import ImagePlacement, PlacedImage
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

LINKS = (
    "https://github.com/om-ai-lab/VLM-R1/issues/263",
    "https://github.com/Blaizzy/mlx-vlm/issues/1726",
)


@rule("images-swapped", "IMG345", formerly=("images-exchanged",))
def images_swapped(landing: ImagePlacement) -> Iterator[Finding]:
    """Images of one row are swapped, or one of them is used nowhere.

    ## Why it matters
    The placeholders of a row are filled from one list of images. A list in another order than the text, or an
    index that takes the same one again, gives the model image B where the question is about image A. Nothing
    raises as long as the numbers fit.

    ## Confidence and false positives
    Each image was replaced by noise, and the tokens that change were determined at the input of the first
    decoder layer. The images of the batch are assumed to have the same order in their row, as every processor
    puts them, so it is a warning. Images of one value are dummies that may be unused, and tiles of one image
    may have any order.

    ## What to do
    Collect images in the order of their placeholders, sample by sample, and write the features in that order.
    """
    if not landing.whole:
        return
    lost = [one for one in landing.images if not one.tokens and not one.blank]
    seen = [one for one in landing.images if one.row is not None]
    for one, other in pairwise(seen):
        if one.row == other.row and one.first > other.last:
            yield _finding(
                landing,
                f"images {one.image} and {other.image} of row {one.row} are swapped",
                other,
                "their order in the batch is not that of their placeholders",
            )
            return
    if lost and (rich := next((one for one in seen if 1 < one.copies < one.tokens), None)):
        yield _finding(
            landing,
            f"image {lost[0].image} is used by no token, and image {rich.image} fills the positions of "
            "several",
            rich,
            "one image's features are used for all placeholders of the row",
        )


def _finding(landing: ImagePlacement, message: str, where: PlacedImage, cause: str) -> Finding:
    return Finding(
        message,
        Severity.WARNING,
        at=(landing.module, f"row {where.row}, tokens {where.first} to {where.last}"),
        measured={
            f"image_{one.image}": f"tokens {one.first} to {one.last}" for one in landing.images if one.tokens
        },
        cause=f"{cause} (inferred from which tokens change with which image)",
        certainty=Certainty.INFERRED,
        fix=Fix("keep the images in the order of their placeholders, and use each of them once"),
        links=LINKS,
    )


@images_swapped.bad
def in_reverse() -> ImagePlacement:
    return ImagePlacement(
        module="model.layers.0",
        images=(
            PlacedImage(image=0, blank=False, row=0, first=22, last=37, tokens=16),
            PlacedImage(image=1, blank=False, row=0, first=3, last=18, tokens=16),
        ),
    )


@images_swapped.bad
def the_first_for_both() -> ImagePlacement:
    return ImagePlacement(
        module="model.layers.0",
        images=(
            PlacedImage(image=0, blank=False, row=0, first=3, last=37, tokens=32, copies=2),
            PlacedImage(image=1, blank=False),
        ),
    )


@images_swapped.good
def in_their_order() -> ImagePlacement:
    return ImagePlacement(
        module="model.layers.0",
        images=(
            PlacedImage(image=0, blank=False, row=0, first=3, last=18, tokens=16),
            PlacedImage(image=1, blank=False, row=0, first=22, last=37, tokens=16),
        ),
    )


@images_swapped.good
def a_stand_in() -> ImagePlacement:
    """A row of text alone, with a blank image that nothing looks at."""
    return ImagePlacement(
        module="model.layers.0",
        images=(
            PlacedImage(image=0, blank=False, row=0, first=3, last=18, tokens=16),
            PlacedImage(image=1, blank=True),
        ),
    )
