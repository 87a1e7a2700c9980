"""pixels-not-transposed: channels were moved to the front with reshape, which scrambles the image."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.image_layout import ImageLayout, LayoutSmoothness
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

ROUGHER = 3.0  # times
SMOOTH = 0.3  # of the spread, from one pixel to the next


@rule("pixels-not-transposed", "IMG347", explains=("batch-not-learned", "image-ignored"))
def pixels_not_transposed(layout: ImageLayout) -> Iterator[Finding]:
    """Pixels not transposed: height, width, channels are read as channels, height, width.

    ## Why it matters
    `torch.from_numpy(array).view(3, height, width)` has the right shape and the wrong content: each channel
    is a third of the image, three neighbouring pixels are the colours of one, and no vision encoder was
    trained on that. Nothing raises, and the loss falls by what the text alone gives.

    ## Confidence and false positives
    Images are smooth. Each one is read both ways: as given, neighbouring pixels differ at least three times
    as much as with the channels last, and there they are close. All images of the batch have to agree; noise
    and solid colours are not judged.

    ## What to do
    Exchange the axes with `permute`, which moves the numbers, and not with `view` or `reshape`.
    """
    found = layout.channels_last
    if not found or not all(_is_scrambled(one) for one in found):
        return
    one = found[0]
    yield Finding(
        f"pixels are not transposed: {len(found)} images are stored as height, width, channels, and read as "
        "channels first",
        Severity.ERROR,
        at=(layout.name,),
        measured={"step_as_given": one.given, "step_with_channels_last": one.other},
        threshold={"step_as_given": ROUGHER * one.other},
        cause="the axes were exchanged by view or reshape, which do not move the numbers (inferred from how "
        "smooth the images are)",
        certainty=Certainty.INFERRED,
        fix=Fix("exchange the axes", ("pixels = torch.from_numpy(array).permute(2, 0, 1)",)),
    )


def _is_scrambled(one: LayoutSmoothness) -> bool:
    return one.other < SMOOTH and one.given > ROUGHER * one.other


@pixels_not_transposed.bad
def viewed() -> ImageLayout:
    return ImageLayout(
        name="pixel_values",
        channels_last=(
            LayoutSmoothness(image=0, given=0.8, other=0.06),
            LayoutSmoothness(image=1, given=0.7, other=0.09),
        ),
    )


@pixels_not_transposed.good
def a_picture() -> ImageLayout:
    return ImageLayout(name="pixel_values", channels_last=(LayoutSmoothness(image=0, given=0.08, other=0.5),))


@pixels_not_transposed.good
def noise() -> ImageLayout:
    return ImageLayout(
        name="pixel_values", channels_last=(LayoutSmoothness(image=0, given=1.13, other=1.13),)
    )
