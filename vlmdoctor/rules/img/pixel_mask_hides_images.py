"""pixel-mask-hides-images: the mask over pixels or images is 0 everywhere."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.image_inputs import ImageInputs, Mask
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule(
    "pixel-mask-hides-images",
    "IMG305",
    explains=(
        "image-without-effect",
        "no-gradient",
        "attention-backends-differ",
        "non-finite-forward",
        "wrong-image",
        "image-adds-nothing",
        "image-ignored",
        "accuracy-below-gate",
    ),
)
def pixel_mask_hides_images(images: ImageInputs) -> Iterator[Finding]:
    """Pixel mask, patch mask or image mask hides all images.

    ## Why it matters
    The vision encoder, or the cross-attention to its features, attends to nothing: it gives the same
    features for every image, zeros, or NaN, depending on the attention back end, and nothing raises.

    ## Confidence and false positives
    The mask was counted over the whole batch. It is reported only where the mask is 0 everywhere, or at all
    positions that predict a label, and the pixels are not those of a blank dummy, as in text-only batches. In
    a deep model some of the image may still reach the answer through tokens of the prompt.

    ## What to do
    Take the mask from the processor's call that made the pixels; leave it out if there is no padding.
    """
    if not images.masks:
        raise Unavailable("the batch has no mask over pixels or images")
    for mask in images.masks:
        if not mask.kept and not images.blank:
            yield Finding(
                f"{mask.name} is 0 everywhere: no image is used",
                Severity.ERROR,
                at=(mask.name,),
                measured={"shape": list(mask.shape), "places_not_0": 0},
                threshold={"places_not_0": 1},
                cause="the mask is 1 at a pixel, patch or image, and 0 at padding",
                fix=Fix("take the mask from the call of the processor that made the pixels"),
            )
        elif mask.answers and not mask.answers_seeing and not images.blank:
            yield Finding(
                f"{mask.name} hides the images from all {mask.answers} supervised tokens",
                Severity.ERROR,
                at=(mask.name,),
                measured={"shape": list(mask.shape), "supervised": mask.answers, "supervised_seeing": 0},
                threshold={"supervised_seeing": 1},
                cause="its rows are 0 where the answers are predicted: it ends after the prompt, as when it "
                "was made for the prompt alone and padded",
                fix=Fix("make the mask for the whole text: 1 from the image's token on"),
            )


@pixel_mask_hides_images.bad
def zeros() -> ImageInputs:
    return ImageInputs(masks=(Mask(name="pixel_attention_mask", shape=(2, 1, 32, 32), kept=0),))


@pixel_mask_hides_images.bad
def ends_behind_the_prompt() -> ImageInputs:
    return ImageInputs(masks=(Mask(name="cross_attention_mask", shape=(2, 16, 1, 4), kept=40, answers=12),))


@pixel_mask_hides_images.good
def text_alone() -> ImageInputs:
    return ImageInputs(masks=(Mask(name="cross_attention_mask", shape=(2, 16, 1, 4), kept=0),), blank=True)


@pixel_mask_hides_images.good
def padding_alone() -> ImageInputs:
    return ImageInputs(masks=(Mask(name="pixel_attention_mask", shape=(2, 2, 32, 32), kept=3 * 32 * 32),))
