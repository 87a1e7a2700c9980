"""feature-scale: image features are thousands of times larger, or smaller, than the text embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.evidence.image_feature_scale import ImageFeatureScale
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

LARGE, SMALL = 3000.0, 1e-4
LOST = 1e-6  # about one rounding of float32


@rule("feature-scale", "IMG342", explains=("loss-not-falling", "wrong-image", "image-without-effect"))
def feature_scale(join: ImageFeatureScale) -> Iterator[Finding]:
    """Image features far larger or smaller than the text embeddings.

    ## Why it matters
    Each layer adds something of the size of the text embeddings to its input. Beside a feature a thousand
    times as large that is nothing: image tokens pass all layers unchanged, the norms before the layers divide
    their gradients by the same factor, and in float16 they overflow. Features that are nearly zero vanish
    under the first layer's output. Causes are a projector without its last norm, a scale applied twice,
    features that skip the projector, and weights of another model.

    ## Confidence and false positives
    The input of the first decoder layer was measured twice, with the batch's images and with others: the
    positions that changed are the images'. In healthy models, fresh and trained, image features have a tenth
    to a few hundred times the size of the text embeddings. It is a warning from 3,000 times on, and below a
    ten-thousandth. Below a millionth, where features are lost in rounding, it is an error. Projectors that
    start at exactly zero are not judged.

    ## What to do
    Look at the projector's last layer and at what scales its output; a norm at the end of the projector fixes
    it.
    """
    sizes = (join.image_size, join.text_size)
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        return
    ratio = join.image_size / join.text_size
    if SMALL <= ratio <= LARGE:
        return
    times = f"{ratio:,.0f} times as large as" if ratio > 1 else f"{1 / ratio:,.0f} times smaller than"
    yield Finding(
        f"image features are {times} the text embeddings, at the input of {join.module}",
        Severity.ERROR if ratio < LOST else Severity.WARNING,
        at=(join.module,),
        measured={
            "image_size": join.image_size,
            "text_size": join.text_size,
            "image_places": join.image_places,
            "text_places": join.text_places,
        },
        threshold={"largest_ratio": LARGE, "smallest_ratio": SMALL},
        cause="measured as the median over positions of the root mean square; what scales the features was "
        "not established",
        certainty=Certainty.INFERRED,
        fix=Fix(
            "look at the projector's output, and end the projector with a norm if nothing else bounds it",
            ("projector = nn.Sequential(projector, nn.LayerNorm(hidden_size))",),
        ),
    )


@feature_scale.bad
def far_too_large() -> ImageFeatureScale:
    return ImageFeatureScale(
        module="model.language_model.layers.0",
        image_places=32,
        text_places=26,
        image_size=2580.0,
        text_size=0.078,
    )


@feature_scale.bad
def nearly_nothing() -> ImageFeatureScale:
    return ImageFeatureScale(
        module="model.language_model.layers.0",
        image_places=32,
        text_places=26,
        image_size=2e-7,
        text_size=0.078,
    )


@feature_scale.good
def larger_but_usual() -> ImageFeatureScale:
    """As in LLaVA, whose features are some sixty times as large as the text."""
    return ImageFeatureScale(
        module="model.language_model.layers.0",
        image_places=1152,
        text_places=80,
        image_size=0.9,
        text_size=0.015,
    )


@feature_scale.good
def a_projector_that_starts_at_zero() -> ImageFeatureScale:
    return ImageFeatureScale(
        module="model.language_model.layers.0",
        image_places=32,
        text_places=26,
        image_size=0.0,
        text_size=0.63,
    )
