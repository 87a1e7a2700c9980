"""pixels-never-rescaled: whole numbers up to 255 reach the model, told without a processor."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.data_examples import healthy_data, sample_picture

WHOLE, BRIGHT = 0.99, 20.0


@rule("pixels-never-rescaled", "IMG341")
def pixels_never_rescaled(data: Data) -> Iterator[Finding]:
    """Pixels from 0 to 255 reach a model of transformers, which expects normalised ones.

    ## Why it matters
    The vision encoder was trained on numbers around 0. With numbers a hundred times as large its first layer
    saturates and a pretrained encoder is worth nothing; the loss still falls, by what the text gives away.

    ## How sure it is
    Nearly all pixels of all images are whole numbers between 0 and 255, and some are above 20. Models whose
    own code divides by 255 exist: it is a warning, and given only for models with a configuration, whose
    processors normalise. Where the processor is given, `pixel-range` tells more.

    ## What to do
    Let the processor rescale and normalise; it knows what the encoder was trained on.
    """
    pictures = [picture for picture in data.pictures if picture.finite and not picture.constant]
    if not pictures:
        raise Unavailable("no images with pixels were given")
    if not data.model_type:
        raise Unavailable("the model has no configuration, and may well take pixels from 0 to 255")
    if any(picture.restored_high is not None for picture in pictures):
        raise Unavailable("the processor is known, so that pixel-range tells it")
    shares = [dict(picture.fits).get("none, from 0 to 255", 0.0) for picture in pictures]
    if min(shares) < WHOLE or max(picture.high for picture in pictures) <= BRIGHT:
        return
    yield Finding(
        f"the pixels were never divided by 255: they go up to {max(p.high for p in pictures):.4g}",
        Severity.WARNING,
        at=("pixel_values", *(picture.name for picture in pictures[:3])),
        measured={"from": min(p.low for p in pictures), "to": max(p.high for p in pictures)},
        threshold={"to": BRIGHT},
        cause="they are whole numbers from 0 to 255, as in a file; such models expect them normalised",
        fix=Fix("let the processor rescale and normalise", ("batch = processor(images=images, text=text)",)),
    )


@pixels_never_rescaled.bad
def as_in_the_file() -> Data:
    raw = [
        sample_picture(
            i,
            low=0.0,
            high=254.0,
            restored_low=None,
            restored_high=None,
            fits=(("none, from 0 to 255", 1.0),),
            contrast=254.0,
        )
        for i in (0, 1)
    ]
    return healthy_data(pictures=tuple(raw), model_type="llava")


@pixels_never_rescaled.good
def normalised() -> Data:
    fits = (("CLIP's", 1.0), ("none, from 0 to 255", 0.0))
    return healthy_data(
        pictures=(sample_picture(restored_low=None, restored_high=None, fits=fits),), model_type="llava"
    )
