"""image-grid-transposed: height and width of an image's grid are exchanged."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.image_layout import ImageLayout, LayoutSmoothness
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

ROUGHER = 1.4  # times
LIKE_INSIDE = 1.4  # times the step inside a patch


@rule("image-grid-transposed", "IMG348", formerly=("grid-exchanged",))
def image_grid_transposed(layout: ImageLayout) -> Iterator[Finding]:
    """Image grid transposed: height and width are exchanged.

    ## Why it matters
    Models that take images as a list of patches know the position of each patch from the grid only. With
    height and width exchanged the number of patches is right, so nothing raises, and every patch gets the
    position of another, in the vision encoder and in the text.

    ## Confidence and false positives
    The patches are laid out both ways, and the differences across their borders are measured. As given they
    are at least 1.4 times as large as with the grid transposed, where they are like those inside a patch.
    Square grids and noise are not judged, and all other grids of the batch have to agree. It is a warning,
    since it is inferred from the images and not from the model.

    ## What to do
    Give the grid as (frames, height, width) in patches.
    """
    if not layout.grids or not all(_is_exchanged(one) for one in layout.grids):
        return
    one = layout.grids[0]
    rows, columns = one.size
    yield Finding(
        f"the grid of image {one.image} is transposed: its patches fit together as {columns} x {rows}, not "
        f"as {rows} x {columns}",
        Severity.WARNING,
        at=("image_grid_thw", f"image {one.image}"),
        measured={"step_across_seams": one.given, "with_the_grid_exchanged": one.other},
        threshold={"step_across_seams": ROUGHER * one.other},
        cause="height and width of the grid are exchanged (inferred from where the patches fit together)",
        certainty=Certainty.INFERRED,
        fix=Fix("give frames, height and width, in patches", ("image_grid_thw = [[1, height, width]]",)),
    )


def _is_exchanged(one: LayoutSmoothness) -> bool:
    return one.inside is not None and one.given > ROUGHER * one.other and one.other < LIKE_INSIDE * one.inside


@image_grid_transposed.bad
def wide_for_high() -> ImageLayout:
    return ImageLayout(
        name="pixel_values",
        grids=(LayoutSmoothness(image=0, given=0.9, other=0.11, inside=0.1, size=(8, 2)),),
    )


@image_grid_transposed.good
def as_it_is() -> ImageLayout:
    return ImageLayout(
        name="pixel_values",
        grids=(LayoutSmoothness(image=0, given=0.11, other=0.9, inside=0.1, size=(2, 8)),),
    )
