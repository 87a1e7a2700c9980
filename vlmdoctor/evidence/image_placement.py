"""At which positions each image and each patch enters the text: pixels are changed, tokens compared."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.images.placement"


@dataclass(frozen=True, kw_only=True)
class PlacedImage:
    """The tokens that one image moves, where they enter the first decoder layer.

    Attributes:
        image: Its number in the batch.
        blank: Whether it is a stand-in of one value, which is not tried.
        row: The row of the batch that its tokens are in; None where it moves none, or tokens of several rows.
        first, last: The first and the last of them.
        tokens: How many they are.
        copies: How many times over they are the same tokens, by how they move; `tokens` where all are alike.
        identical: Whether all of them are one vector, and not one to each of which something else is added.
        grid: Rows and columns of the image's patches, one for each token; None where that is not known.
        peaks: (patch, token that it moves most, how many times as much as any other) for some patches, both
            numbered from 0 and the patches row by row; empty where they were not tried.
    """

    image: int
    blank: bool = False
    row: int | None = None
    first: int = 0
    last: int = 0
    tokens: int = 0
    copies: int = 1
    identical: bool = False
    grid: tuple[int, int] | None = None
    peaks: tuple[tuple[int, int, float], ...] = ()

    @property
    def alike(self) -> bool:
        """Whether all its tokens are one and the same."""
        return 1 < self.tokens == self.copies


@dataclass(frozen=True, kw_only=True)
class ImagePlacement:
    """What was seen in front of the first decoder layer.

    Attributes:
        module: That layer, by its canonical name.
        images: The first images of the batch.
        whole: Whether each is a picture of its own: not a tile, whose order is up to the model.
        equal_queries: Whether tokens of an image that are alike are so because the queries that ask for them
            start out equal.
    """

    module: str
    images: tuple[PlacedImage, ...]
    whole: bool = True
    equal_queries: bool = False
