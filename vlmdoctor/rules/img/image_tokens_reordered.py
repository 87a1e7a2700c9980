"""image-tokens-reordered: image tokens are not in the order of the patches, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vlmdoctor.evidence.image_placement import ImagePlacement, PlacedImage
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

CLEAR = 2.0  # times as far as any other token
# (patch, rows, columns) -> its token.
_ORDERS: dict[str, Callable[[int, int, int], int]] = {
    "column by column": lambda patch, rows, columns: patch % columns * rows + patch // columns,
    "in reverse": lambda patch, rows, columns: rows * columns - 1 - patch,
    "row by row from the last row on": lambda patch, rows, columns: (
        (rows - 1 - patch // columns) * columns + patch % columns
    ),
    "with each row from right to left": lambda patch, rows, columns: (
        patch // columns * columns + columns - 1 - patch % columns
    ),
}


@rule("image-tokens-reordered", "IMG344")
def image_tokens_reordered(landing: ImagePlacement) -> Iterator[Finding]:
    """Image tokens in another order than the patches: reversed, by columns, or shuffled.

    ## Why it matters
    Pretrained weights read images row by row, from the top left. A `permute` that exchanges height and width,
    a reordering for windowed attention that is not undone, a `flip` or a shuffle puts every patch at
    another's position. Shapes fit, and the features still say what is in the image, but not where.

    ## Confidence and false positives
    Single patches were replaced by noise, and the token that changes most was determined at the input of the
    first decoder layer. It is reported only where each patch has one token that changes at least twice as
    much as any other. Models without such a map (Q-Former, pooled features, cross-attention) are not judged.
    A model that is trained from scratch with a *fixed* order of its own learns as well, so it is a warning.

    ## What to do
    Follow the features from the vision encoder to the placeholders: look at each `permute`, `transpose`,
    `flip` and index, and put the patches back in their order.
    """
    for one in landing.images:
        if one.grid is None or any(far < CLEAR for _, _, far in one.peaks):
            continue
        moved = [(patch, token) for patch, token, _ in one.peaks if patch != token]
        if not moved:
            continue
        patch, token = moved[0]
        yield Finding(
            f"the tokens of image {one.image} are ordered {_order(one, one.grid)}, not row by row",
            Severity.WARNING,
            at=(landing.module, f"row {one.row}, tokens {one.first} to {one.last}"),
            measured={"patches_tried": len(one.peaks), "at_another_place": len(moved)},
            threshold={"at_another_place": 0},
            cause=f"of {one.grid[0]} x {one.grid[1]} patches, patch {patch} changes token {token} most; "
            "that matters unless the model is trained from scratch in this order",
            fix=Fix("put the patches back in order, row by row, before they are inserted into the text"),
        )
        return


def _order(one: PlacedImage, grid: tuple[int, int]) -> str:
    for name, token_of in _ORDERS.items():
        if all(token == token_of(patch, *grid) for patch, token, _ in one.peaks):
            return name
    return "differently"


def _peaks(*tokens: int, far: float = 12.0) -> tuple[tuple[int, int, float], ...]:
    return tuple((patch, token, far) for patch, token in enumerate(tokens))


@image_tokens_reordered.bad
def by_columns() -> ImagePlacement:
    return ImagePlacement(
        module="model.layers.0",
        images=(
            PlacedImage(
                image=0,
                blank=False,
                row=0,
                first=3,
                last=8,
                tokens=6,
                grid=(2, 3),
                peaks=_peaks(0, 2, 4, 1, 3, 5),
            ),
        ),
    )


@image_tokens_reordered.bad
def reversed_order() -> ImagePlacement:
    return ImagePlacement(
        module="model.layers.0",
        images=(
            PlacedImage(
                image=0, blank=False, row=0, first=3, last=6, tokens=4, grid=(2, 2), peaks=_peaks(3, 2, 1, 0)
            ),
        ),
    )


@image_tokens_reordered.good
def row_by_row() -> ImagePlacement:
    return ImagePlacement(
        module="model.layers.0",
        images=(
            PlacedImage(
                image=0, blank=False, row=0, first=3, last=6, tokens=4, grid=(2, 2), peaks=_peaks(0, 1, 2, 3)
            ),
        ),
    )


@image_tokens_reordered.good
def no_map() -> ImagePlacement:
    """A Q-Former: every query looks at every patch."""
    seen = PlacedImage(
        image=0,
        blank=False,
        row=0,
        first=3,
        last=6,
        tokens=4,
        grid=(2, 2),
        peaks=_peaks(2, 3, 0, 2, far=1.04),
    )
    return ImagePlacement(module="llm.layers.0", images=(seen,))
