"""In which order the pixels of the batch lie: that in which a picture is smooth is the one it was made in.

Shapes:
    H height, W width, P patches of an image, h and w its rows and columns of patches, p a patch's side
"""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.images.layout"


@dataclass(frozen=True, kw_only=True)
class LayoutSmoothness:
    """How rough one picture is as it is given, and read in another way.

    Attributes:
        image: Its number in the batch.
        given: The mean step from one pixel to the next, relative to the spread of all pixels.
        other: The same where it is read in the other way.
        inside: The same inside patches, which both ways leave alone; None for pictures that are not in
            patches.
        size: Its height and width, or its rows and columns of patches.
    """

    image: int
    given: float
    other: float
    inside: float | None = None
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """The readings of the pictures that are no stand-ins.

    Attributes:
        name: The key of the pixels.
        channels_last: Pictures [3, H, W], and their numbers taken for [H, W, 3].
        grids: Pictures in patches, with their grid, and with height and width of the grid exchanged.
    """

    name: str
    channels_last: tuple[LayoutSmoothness, ...] = ()
    grids: tuple[LayoutSmoothness, ...] = ()
