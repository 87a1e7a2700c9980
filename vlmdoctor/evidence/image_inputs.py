"""What a batch says about its images besides the pixels: grids, sizes and masks, compared with each other.

Shapes:
    N images, P patches of all images, D numbers in a patch, B rows, H height, W width
"""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.images.inputs"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grids [N, 2 or 3] of images whose patches lie in one flat tensor [P, D].

    Attributes:
        name, pixels: The keys of the two.
        grids: How many there are.
        wanted: The patches that they speak of, in sum.
        patches: The patches that there are.
    """

    name: str
    pixels: str
    grids: int
    wanted: int
    patches: int


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A mask of pixels, patches or images.

    Attributes:
        name: Its key.
        shape: Its shape.
        kept: How many of its places are not 0.
        answers: How many supervised tokens are predicted by a token that it covers; 0 where it does not
            cover tokens.
        answers_seeing: How many of those tokens may look at an image.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    answers: int = 0
    answers_seeing: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """What was found in the batch.

    Attributes:
        grids: Grids with the patches that they belong to.
        masks: Masks of what the vision encoder or the cross-attention may look at.
        images: The number of images by the pixels' first dimension; None where that does not say it.
        per_image: (key, entries) of tensors that have one entry for each image.
        blank: Whether all pixels have one value, as in the stand-in of a batch of text alone.
    """

    grids: tuple[Grid, ...] = ()
    masks: tuple[Mask, ...] = ()
    images: int | None = None
    per_image: tuple[tuple[str, int], ...] = ()
    blank: bool = False
