"""image-grid-misfit: grids or sizes do not match the pixels."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.failure import Failure
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.image_inputs import Grid, ImageInputs
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted

FIX = Fix(
    "take pixels and grids from one call of the processor, and truncate, sort or pad both in the same way"
)


@rule("image-grid-misfit", "IMG304", explains=("forward-raises",))
def image_grid_misfit(images: ImageInputs, forward: Forward) -> Iterator[Finding]:
    """Image grid or list of image sizes does not match the pixels of the batch.

    ## Why it matters
    Models that take images of any size get all patches in one flat tensor, and a grid says which of them make
    an image. Where a collator joins, sorts or truncates only one of the two, the model raises somewhere
    inside its vision encoder, about an index or a size that says nothing about the batch.

    ## Confidence and false positives
    The products of the grids were compared with the number of patches; the entries of per-image lists were
    counted. It is reported only where the forward pass raises.

    ## What to do
    Take both from one call of the processor, and keep them together in the collator.
    """
    if not images.grids and not (images.per_image and images.images):
        raise Unavailable("the batch has no grids or sizes of images")
    if forward.failure is None:
        return
    for grid in images.grids:
        if grid.wanted != grid.patches:
            yield Finding(
                f"{grid.name} gives {grid.wanted} patches, and {grid.pixels} holds {grid.patches}",
                Severity.ERROR,
                at=(grid.name, grid.pixels),
                measured={"grids": grid.grids, "patches_by_the_grids": grid.wanted, "patches": grid.patches},
                threshold={"patches": grid.wanted},
                cause="pixels and grids are not of the same images",
                fix=FIX,
            )
            return
    for name, entries in images.per_image:
        if images.images is not None and entries != images.images:
            yield Finding(
                f"{name} has {entries} entries for {counted(images.images, 'image')}",
                Severity.ERROR,
                at=(name, "pixel_values"),
                measured={"entries": entries, "images": images.images},
                threshold={"entries": images.images},
                cause="pixels and sizes are not of the same images",
                fix=FIX,
            )
            return


RAISED = Forward(
    failure=Failure(type="IndexError", message="index 8 is out of bounds for dimension 0 with size 8")
)


@image_grid_misfit.bad
def grid_of_larger_images() -> tuple[ImageInputs, Forward]:
    return ImageInputs(
        grids=(Grid(name="image_grid_thw", pixels="pixel_values", grids=2, wanted=64, patches=32),)
    ), RAISED


@image_grid_misfit.bad
def one_image_is_missing() -> tuple[ImageInputs, Forward]:
    return ImageInputs(images=1, per_image=(("image_sizes", 2),)), RAISED


@image_grid_misfit.good
def they_fit() -> tuple[ImageInputs, Forward]:
    grids = (Grid(name="image_grid_thw", pixels="pixel_values", grids=2, wanted=32, patches=32),)
    return ImageInputs(grids=grids, images=2, per_image=(("image_sizes", 2),)), Forward(loss=1.0, finite=True)
