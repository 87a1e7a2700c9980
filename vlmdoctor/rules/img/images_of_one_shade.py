"""images-of-one-shade: the images have next to no contrast, as when pixels are divided by 255 twice."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Picture
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.data_examples import healthy_data, sample_picture

STEP = 1 / 255
# The standard deviations that processors divide by lie between 0.2 and 0.5, and their means over those
# between 0.9 and 2.4: one step of 1/255 and black, after normalisation.
CONTRAST = STEP / 0.2
BLACK = (-2.5, -0.85)


@rule("images-of-one-shade", "IMG340", explains=("image-ignored",))
def images_of_one_shade(data: Data) -> Iterator[Finding]:
    """All images are of almost one shade: no channel spans more than one step of 256.

    ## Why it matters
    There is next to nothing to see, and nothing raises. Images that are already between 0 and 1 (`ToTensor`)
    are divided by 255 once more by the processor, and normalised to what is nearly black
    ([transformers 25688](https://github.com/huggingface/transformers/issues/25688)).

    ## How sure it is
    All pixels were looked at, channel by channel. Images from files span most of 256 steps; here each of
    them spans at most one, whatever usual normalisation they went through. It is an error where there are
    two such images or more and they lie where black does, or would after normalisation, and a warning
    otherwise. Images of exactly one colour have a rule of their own.

    ## What to do
    Hand images to the processor as they come from the file (0 to 255), and only once.
    """
    pictures = [picture for picture in data.pictures if picture.finite and not picture.constant]
    if not pictures:
        raise Unavailable("no images with pixels were given")
    spans = [picture.contrast for picture in pictures]
    if any(span is None or not 0 < span <= CONTRAST for span in spans):
        return
    if all(_black_for_the_processor(picture) for picture in pictures):
        return  # pixel-range tells it, with the processor's own numbers
    widest = max(span or 0.0 for span in spans)
    low, high = min(picture.low for picture in pictures), max(picture.high for picture in pictures)
    black = (low >= 0 and high <= 1.05 * STEP) or (BLACK[0] <= low and high <= BLACK[1])
    yield Finding(
        f"the images are almost of one shade: pixels span {widest:.4f} within a channel, around {low:.3f}",
        Severity.ERROR if black and len(pictures) > 1 else Severity.WARNING,
        at=("pixel_values", *(picture.name for picture in pictures[:3])),
        measured={"images": len(pictures), "contrast": widest, "from": low, "to": high},
        threshold={"contrast": CONTRAST},
        cause="one step of 256 is all that is left, and it lies where black does: they were divided by 255 "
        "twice, once before the processor and once in it"
        if black
        else "one step of 256 is all that is left; what took the contrast away was not established",
        fix=Fix(
            "hand the processor images from 0 to 255, or tell it that they are rescaled",
            ("processor(images=images, do_rescale=False, ...)",),
        ),
        links=("https://github.com/huggingface/transformers/issues/25688",),
    )


def _black_for_the_processor(picture: Picture) -> bool:
    low, high = picture.restored_low, picture.restored_high
    return low is not None and high is not None and low > -1.05 * STEP and 0 < high < 1.05 * STEP


@images_of_one_shade.bad
def rescaled_twice() -> Data:
    dark = [
        sample_picture(
            i, low=-1.8, high=-1.47, restored_low=None, restored_high=None, fits=(), contrast=0.0145
        )
        for i in (0, 1)
    ]
    return healthy_data(pictures=tuple(dark))


@images_of_one_shade.good
def as_from_a_file() -> Data:
    return healthy_data(pictures=(sample_picture(contrast=3.7), sample_picture(1, contrast=2.9)))


@images_of_one_shade.good
def one_dark_among_others() -> Data:
    return healthy_data(pictures=(sample_picture(contrast=0.004), sample_picture(1, contrast=2.9)))
