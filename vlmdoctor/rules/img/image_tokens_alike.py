"""image-tokens-alike: all tokens of an image are the same vector."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.image_placement import ImagePlacement, PlacedImage
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

FEWEST = 4  # tokens of an image


@rule("image-tokens-alike", "IMG343", explains=("loss-not-falling", "batch-not-learned"))
def image_tokens_alike(landing: ImagePlacement) -> Iterator[Finding]:
    """All tokens of an image have the same features.

    ## Why it matters
    A wrong index (`features[:, :1]`, `features[0]`), an `expand` where a reshape was meant, or an average
    over the wrong axis gives one patch, or the mean of all, to every image token. Shapes fit, gradients flow,
    and the loss falls by what one vector says about an image.

    ## Confidence and false positives
    The image was replaced by noise, and the change of each of its tokens was measured at the input of the
    first decoder layer: it is the same vector for all tokens. Models with queries (Q-Former, Perceiver) that
    start with equal ones are not judged, nor are images of fewer than four tokens. It is an error where all
    tokens are identical, and a warning where something is added to each (positions, as in GPT-2): a model may
    repeat one pooled vector with learned offsets on purpose.

    ## What to do
    Follow the features from the vision encoder to the placeholders, and look at which axis is which.
    """
    if landing.equal_queries:
        return
    alike = [one for one in landing.images if one.tokens >= FEWEST and one.alike]
    if not alike:
        return
    first = alike[0]
    yield Finding(
        f"all {first.tokens} tokens of image {first.image} have the same features",
        Severity.ERROR if first.identical else Severity.WARNING,
        at=(landing.module, f"row {first.row}, tokens {first.first} to {first.last}"),
        measured={"tokens": first.tokens, "alike": first.copies, "images": len(alike)},
        threshold={"alike": 1},
        cause="one patch, or an average, is used for every image token (inferred from how they change when "
        "the image is replaced)",
        certainty=Certainty.INFERRED,
        fix=Fix(
            "put each patch's features at a placeholder of its own: check the index and the axes of the "
            "features between the vision encoder and the text"
        ),
    )


@image_tokens_alike.bad
def the_first_patch_for_all() -> ImagePlacement:
    return ImagePlacement(
        module="model.layers.0",
        images=(
            PlacedImage(image=0, blank=False, row=0, first=3, last=18, tokens=16, copies=16, identical=True),
        ),
    )


@image_tokens_alike.bad
def with_positions() -> ImagePlacement:
    return ImagePlacement(
        module="h.0",
        images=(
            PlacedImage(image=0, blank=False, row=0, first=3, last=18, tokens=16, copies=16),
            PlacedImage(image=1, blank=False, row=1, first=3, last=18, tokens=16, copies=16),
        ),
    )


@image_tokens_alike.good
def each_its_own() -> ImagePlacement:
    return ImagePlacement(
        module="model.layers.0",
        images=(PlacedImage(image=0, blank=False, row=0, first=3, last=18, tokens=16),),
    )


@image_tokens_alike.good
def queries_before_their_weights_are_loaded() -> ImagePlacement:
    return ImagePlacement(
        module="model.layers.0",
        images=(PlacedImage(image=0, blank=False, row=0, first=3, last=34, tokens=32, copies=32),),
        equal_queries=True,
    )
