"""pixels-not-usable: the images are blank, or hold NaN."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_picture
from vlmdoctor.rules.places import counted


@rule(
    "pixels-not-usable",
    "IMG303",
    explains=(
        "non-finite",
        "non-finite-forward",
        "image-ignored",
        "image-adds-nothing",
        "accuracy-below-gate",
    ),
)
def pixels_not_usable(data: Data) -> Iterator[Finding]:
    """Images are blank (one solid colour each), or pixels are NaN or infinite.

    ## Why it matters
    The loss falls as always, by what the text alone gives away, and the model never learns to use images.
    Causes are images that failed to load and were replaced by blank ones, a wrong column, or pixels that were
    cast to integers after rescaling. A NaN in one image makes every weight NaN in one step.

    ## Confidence and false positives
    All pixels were read. One blank image among others is no finding, since some recipes use a blank one as
    the missing image of a text-only sample. If all images are blank, it is a warning for a batch made by
    hand, and an error for images from the dataset.

    ## What to do
    Look at what the model gets with `vlmdoctor look`, then at what loads the images.
    """
    pictures = data.pictures
    if not pictures:
        raise Unavailable("no images with pixels were given")
    broken = [p for p in pictures if not p.finite]
    if broken:
        yield Finding(
            f"{len(broken)} of {counted(len(pictures), 'image')} with pixels that are NaN or infinite",
            Severity.ERROR,
            at=("pixel_values", *(p.name for p in broken[:4])),
            measured={"images": len(pictures), "not_finite": len(broken)},
            threshold={"not_finite": 0},
            cause="the pixels themselves are non-finite, before the model gets them: a division by a "
            "standard deviation of 0, or a broken file; which was not established",
            certainty=Certainty.INFERRED,
            fix=Fix(
                "find the step of the preprocessing that makes them",
                ("assert torch.isfinite(batch['pixel_values']).all()",),
            ),
        )
    elif all(p.constant for p in pictures):
        colours = {(p.low, p.high) for p in pictures}
        yield Finding(
            "images are blank: "
            + ("the only one is" if len(pictures) == 1 else f"each of the {len(pictures)} is")
            + " one solid colour",
            Severity.ERROR if data.samples and len(pictures) > 1 else Severity.WARNING,
            at=("pixel_values", *(p.name for p in pictures[:4])),
            measured={
                "images": len(pictures),
                "of_one_colour": len(pictures),
                "different_colours": len(colours),
            },
            threshold={"of_one_colour": len(pictures) - 1},
            cause="every pixel of an image has the same value; what made them so was not established",
            certainty=Certainty.INFERRED,
            fix=Fix(
                "look at what loads and preprocesses the images",
                ("print(batch['pixel_values'].flatten(1).std(1))",),
            ),
        )


@pixels_not_usable.bad
def blank() -> Data:
    blank = [sample_picture(i, low=-1.8, high=-1.8, constant=True, fits=()) for i in (0, 1)]
    return healthy_data(pictures=tuple(blank))


@pixels_not_usable.bad
def not_a_number() -> Data:
    return healthy_data(pictures=(sample_picture(finite=False, fits=()), sample_picture(1)))


@pixels_not_usable.good
def one_blank_stand_in() -> Data:
    return healthy_data(pictures=(sample_picture(), sample_picture(1, constant=True, fits=())))
