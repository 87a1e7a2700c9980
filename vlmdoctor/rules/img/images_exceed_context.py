"""images-exceed-context: one image takes more tokens than the model has positions."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.shapes import Shapes
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("images-exceed-context", "IMG401", explains=("sequence-too-long",))
def images_exceed_context(shapes: Shapes) -> Iterator[Finding]:
    """Images of one sample take more tokens than the context length.

    ## Why it matters
    What comes after the last position is truncated or, with rotary embeddings, was never seen in training:
    the text after the images, answer included, is lost or unreliable.

    ## Confidence and false positives
    The image tokens are counted in the batch; a batch made from the configuration has images of the size that
    the configuration suggests. The limit is `max_position_embeddings`. It is a warning, since positions may
    be scaled beyond the limit on purpose.

    ## What to do
    Smaller images (`max_pixels`, fewer tiles), fewer of them, or a longer context.
    """
    tokens, context = shapes.image_tokens, shapes.context
    if tokens is None or context is None or tokens < context:
        return
    yield Finding(
        message=f"the images of one sample take {tokens} tokens, the context holds {context}",
        severity=Severity.WARNING,
        measured={"image_tokens": tokens},
        threshold={"max_position_embeddings": context},
        cause="no position is left for the text after them",
        fix=Fix("make the images smaller, take fewer tiles or images, or raise max_position_embeddings"),
    )


@images_exceed_context.bad
def one_large_image() -> Shapes:
    return Shapes(image_tokens=2880, context=2048, tokens=2900, batch_size=1)


@images_exceed_context.good
def an_ordinary_image() -> Shapes:
    return Shapes(image_tokens=576, context=4096, tokens=640, batch_size=1)
