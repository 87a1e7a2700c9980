"""pixel-range: the pixels are not in the range, or on the scale, that the processor's settings give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Picture
from vlmdoctor.evidence.wiring import FirstLook, Wiring
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_picture

FITS, MISFITS = 0.95, 0.8  # half of the steps fit where values are halved
STEP = 1 / 255
WHOLE, BRIGHT = 0.99, 20.0
# The standard deviations that processors divide by lie between 0.2 and 0.5, and their means over those
# between 0.9 and 2.4: one step of 1/255 and black, after normalisation.
CONTRAST = STEP / 0.2
BLACK = (-2.5, -0.85)


@rule(
    "pixel-range",
    "IMG302",
    explains=("image-ignored",),
    formerly=("pixels-never-rescaled", "IMG341", "images-of-one-shade", "IMG340"),
)
def pixel_range(data: Data, wiring: Wiring | None) -> Iterator[Finding]:
    """Pixel values rescaled twice or never, or not normalised as the processor says.

    ## Why it matters
    Nothing raises: the model gets images that are nearly black, far too bright, or of the wrong contrast, and
    a pretrained encoder gives worse features. Images that are already between 0 and 1 (`ToTensor`) are
    divided by 255 once more ([transformers 25688](https://github.com/huggingface/transformers/issues/25688)),
    or the statistics of another model are used ([coreai-models
    82](https://github.com/apple/coreai-models/issues/82)).

    ## Confidence and false positives
    Pixels are multiples of 1/255. With the right normalisation undone nearly all pixels are such multiples
    again; with a wrong one about one in twenty is. The finding names the normalisation that fits, if the
    processor's does not. That needs float32 pixels and the processor, and all images must agree. Which
    normalisation is right depends on the model's training, so it is a warning, except for images rescaled
    twice or never, which no model is made for.

    Without a processor, whole numbers between 0 and 255 in nearly all pixels, some above 20, are a warning
    for models with a configuration, whose processors normalise. Other models may divide in their own code, so
    it is measured what their first layer on the path of the images is given: pixels just as they are in the
    batch, from 0 to far above 20, are a warning, unless that layer or the next is a norm.

    Images that span at most one of 256 steps in each channel were rescaled twice, whatever usual
    normalisation followed. It is an error where there are two or more and they are near black, else a
    warning. Images of one solid colour have a rule of their own.

    ## What to do
    Pass images to the processor as they come from the file (0 to 255), and only once.
    """
    pictures = [p for p in data.pictures if p.finite and not p.constant]
    if not pictures:
        raise Unavailable("no images with pixels were given")
    known = [p for p in pictures if p.restored_high is not None and p.restored_low is not None]
    found = list(_by_the_processor(known)) if len(known) == len(pictures) else []
    if not known and data.model_type:
        found += _whole_numbers(pictures)
    elif not known and wiring is not None and wiring.first_look is not None:
        found += _as_the_layer_gets_them(pictures, wiring.first_look)
    yield from found or _one_shade(pictures)


def _by_the_processor(known: Sequence[Picture]) -> Iterator[Finding]:
    low, high = min(p.restored_low or 0.0 for p in known), max(p.restored_high or 0.0 for p in known)
    darkest = low > -1.05 * STEP and high < 1.05 * STEP
    measured = {"from": low, "to": high, "images": len(known)}
    at = ("pixel_values", *(p.name for p in known[:3]))
    if darkest and high > 0:
        yield Finding(
            f"the images are nearly black: with the normalisation undone, pixels go up to {high:.4f} of 1",
            Severity.ERROR,
            at=at,
            measured=measured,
            threshold={"to": 1.0},
            cause="they were divided by 255 twice: once before the processor, and once in it",
            fix=Fix(
                "pass the processor images from 0 to 255, or set do_rescale=False",
                ("processor(images=images, do_rescale=False, ...)",),
            ),
        )
    elif high > 20:
        yield Finding(
            f"the pixels were never divided by 255: they go up to {max(p.high for p in known):.4g}",
            Severity.ERROR,
            at=at,
            measured=measured,
            threshold={"to": 1.0},
            cause="rescaling was switched off or left out, for images from 0 to 255",
            fix=Fix("let the processor rescale", ("processor.image_processor.do_rescale = True",)),
        )
    elif (other := _other_normalisation(known)) is not None:
        which, share, own = other
        yield Finding(
            f"the pixels were not normalised as the processor says: {which} fits, its own does not",
            Severity.WARNING,
            at=at,
            measured={**measured, f"pixels that fit {which}": share, "pixels that fit the processor's": own},
            threshold={"fits": FITS},
            cause=(
                "undoing that normalisation gives whole steps of 1/255, undoing the processor's does not; "
                "which one the model was made for was not established"
            ),
            certainty=Certainty.INFERRED,
            fix=Fix(
                "use one processor for all images, the one that came with the vision encoder",
                ("print(processor.image_processor.image_mean, processor.image_processor.image_std)",),
            ),
        )


def _whole_numbers(pictures: Sequence[Picture]) -> Iterator[Finding]:
    """Pixels as in a file."""
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


def _as_the_layer_gets_them(pictures: Sequence[Picture], first: FirstLook) -> Iterator[Finding]:
    """Pixels that the model does not scale either."""
    low, high = min(p.low for p in pictures), max(p.high for p in pictures)
    unscaled = abs(first.high - high) <= 1e-3 * high and abs(first.low - low) <= 1e-3 * high
    if low < 0 or high <= BRIGHT or high > 256 or first.size <= BRIGHT / 2:
        return
    if not unscaled or "norm" in first.kind.lower():
        return
    yield Finding(
        f"the pixels were never divided by 255: {first.module} is given values up to {high:.4g}",
        Severity.WARNING,
        at=("pixel_values", first.module),
        measured={"from": low, "to": high, "root_mean_square": first.size},
        threshold={"to": BRIGHT},
        cause=f"the first layer that sees the images ({first.kind}) gets them from 0 to {high:.4g}; its "
        "initialisation is made for values of about one; that it was trained for others is not established",
        certainty=Certainty.INFERRED,
        fix=Fix(
            "divide them, and normalise as the encoder was trained", ("pixel_values = pixel_values / 255",)
        ),
    )


def _one_shade(pictures: Sequence[Picture]) -> Iterator[Finding]:
    """Next to no contrast."""
    spans = [picture.contrast for picture in pictures]
    if any(span is None or not 0 < span <= CONTRAST for span in spans):
        return
    widest = max(span or 0.0 for span in spans)
    low, high = min(picture.low for picture in pictures), max(picture.high for picture in pictures)
    black = (low >= 0 and high <= 1.05 * STEP) or (BLACK[0] <= low and high <= BLACK[1])
    yield Finding(
        f"the images have almost no contrast: pixels span {widest:.4f} within a channel, around {low:.3f}",
        Severity.ERROR if black and len(pictures) > 1 else Severity.WARNING,
        at=("pixel_values", *(picture.name for picture in pictures[:3])),
        measured={"images": len(pictures), "contrast": widest, "from": low, "to": high},
        threshold={"contrast": CONTRAST},
        cause="one step of 256 is all that is left, near black: they were divided by 255 twice, once before "
        "the processor and once in it"
        if black
        else "one step of 256 is all that is left; the reason was not established",
        certainty=Certainty.MEASURED if black else Certainty.INFERRED,
        fix=Fix(
            "pass the processor images from 0 to 255, or set do_rescale=False",
            ("processor(images=images, do_rescale=False, ...)",),
        ),
    )


def _other_normalisation(pictures: Sequence[Picture]) -> tuple[str, float, float] | None:
    """(name, share of pixels that fit it, share that fits the processor's), where only the former fits."""
    if not all(p.fits for p in pictures):
        return None
    least = {name: min(dict(p.fits).get(name, 0.0) for p in pictures) for name, _ in pictures[0].fits}
    own = max(dict(p.fits).get("declared", 1.0) for p in pictures)
    least.pop("declared", None)
    if own > MISFITS or not least:
        return None
    best = max(least, key=lambda name: least[name])
    return (best, least[best], own) if least[best] >= FITS else None


@pixel_range.bad
def rescaled_twice() -> Data:
    dark = [
        sample_picture(i, low=-1.8, high=-1.78, restored_low=0.0, restored_high=0.0039, fits=())
        for i in (0, 1)
    ]
    return healthy_data(pictures=tuple(dark))


@pixel_range.bad
def never_rescaled() -> Data:
    return healthy_data(pictures=(sample_picture(low=-1.8, high=940.0, restored_high=255.0, fits=()),))


@pixel_range.bad
def not_normalised() -> Data:
    fits = (("declared", 0.04), ("CLIP's", 0.04), ("none, from 0 to 1", 1.0))
    return healthy_data(
        pictures=(sample_picture(low=0.0, high=1.0, restored_low=0.4, restored_high=0.8, fits=fits),)
    )


@pixel_range.good
def as_the_processor_says() -> Data:
    return healthy_data(pictures=(sample_picture(), sample_picture(1)))


@pixel_range.good
def resized_after_rescaling() -> Data:
    """Interpolated pixels are no whole steps under any normalisation."""
    fits = (("declared", 0.04), ("CLIP's", 0.04), ("none, from 0 to 1", 0.04))
    return healthy_data(pictures=(sample_picture(fits=fits),))


def _raw(high: float) -> tuple[Data, Wiring]:
    picture = sample_picture(
        low=0.0, high=254.0, restored_low=None, restored_high=None, fits=(), contrast=254.0
    )
    look = FirstLook(module="vision.0", kind="Conv2d", low=0.0, high=high, size=0.58 * high)
    return healthy_data(pictures=(picture,), model_type=""), Wiring(first_look=look)


@pixel_range.bad
def as_in_the_file_for_a_model_of_ones_own() -> tuple[Data, Wiring]:
    return _raw(254.0)


@pixel_range.good
def divided_in_the_model() -> tuple[Data, Wiring]:
    return _raw(254.0 / 255.0)


@pixel_range.bad
def as_in_the_file_and_no_processor() -> Data:
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


@pixel_range.good
def normalised_and_no_processor() -> Data:
    fits = (("CLIP's", 1.0), ("none, from 0 to 255", 0.0))
    return healthy_data(
        pictures=(sample_picture(restored_low=None, restored_high=None, fits=fits),), model_type="llava"
    )


@pixel_range.bad
def rescaled_twice_and_no_processor() -> Data:
    dark = [
        sample_picture(
            i, low=-1.8, high=-1.47, restored_low=None, restored_high=None, fits=(), contrast=0.0145
        )
        for i in (0, 1)
    ]
    return healthy_data(pictures=tuple(dark))


@pixel_range.good
def as_from_a_file() -> Data:
    return healthy_data(pictures=(sample_picture(contrast=3.7), sample_picture(1, contrast=2.9)))


@pixel_range.good
def one_dark_among_others() -> Data:
    return healthy_data(pictures=(sample_picture(contrast=0.004), sample_picture(1, contrast=2.9)))
