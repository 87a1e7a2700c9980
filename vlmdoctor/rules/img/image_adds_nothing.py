"""image-adds-nothing: a batch whose answers depend on the images is overfit as well with blank ones."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.image_needed import STEPS, ImageNeeded
from vlmdoctor.evidence.overfit import Try
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

HALF = 0.5  # of the first loss: then most of what the text gives is learned, and the rest is the images'
ALIKE = 0.95  # of the loss with blank images: a model that uses images is far below it by then


@rule("image-adds-nothing", "IMG350")
def image_adds_nothing(needed: ImageNeeded) -> Iterator[Finding]:
    """Images add nothing to what one batch can be overfit to: blank images do as well.

    ## Why it matters
    Equal losses with and without images prove nothing as long as the text gives the answers: one batch can be
    overfit from its words. Where rows ask the same of different images and have different answers, the words
    are not enough, and a model that uses its images gets a lower loss than the words allow within a few dozen
    steps. A model whose image features are too small, all alike, or lost in the projector stays at the loss
    of the text.

    ## Confidence and false positives
    On copies, with dropout off, the batch was overfit twice by AdamW at the same rate, once with all images
    blank. It is reported only where a tenth of the supervised tokens can't be known from the text before
    them, where both losses fell to half, and where they end within 5% of each other. It is for information,
    since a very small signal may only need more steps.

    ## What to do
    Compare the projector's output for two images, and its scale with that of the token embeddings. Train the
    projector alone first, at a higher rate.
    """
    shown, blank = needed.shown, needed.blank
    if blank is None or min(len(shown.losses), len(blank.losses)) <= STEPS:
        return
    if max(shown.best, blank.best) > HALF * blank.losses[0] or shown.best < ALIKE * blank.best:
        return
    yield Finding(
        f"in {STEPS} steps the images add nothing: the loss falls to {shown.best:.4g} with them, and to "
        f"{blank.best:.4g} with blank ones",
        Severity.INFO,
        at=("images",),
        measured={
            "loss_with_images": shown.best,
            "loss_with_blank_images": blank.best,
            "tokens_only_images_tell": needed.ambiguous,
            "supervised_tokens": needed.supervised,
        },
        threshold={"loss_with_images": ALIKE * blank.best},
        cause=f"{needed.ambiguous} of {needed.supervised} answer tokens can't be predicted from the text "
        "before them, and were not predicted from the images either; the reason was not established",
        certainty=Certainty.INFERRED,
        fix=Fix("compare the projector's output for two images, and its scale with the token embeddings'"),
    )


def _falling(to: float) -> tuple[float, ...]:
    return tuple(4.6 + (to - 4.6) * step / STEPS for step in range(STEPS + 1))


@image_adds_nothing.bad
def features_too_faint() -> ImageNeeded:
    return ImageNeeded(
        ambiguous=8,
        supervised=24,
        shown=Try(rate=3e-3, losses=_falling(0.665)),
        blank=Try(rate=3e-3, losses=_falling(0.665)),
    )


@image_adds_nothing.good
def looks() -> ImageNeeded:
    return ImageNeeded(
        ambiguous=8,
        supervised=24,
        shown=Try(rate=3e-3, losses=_falling(0.52)),
        blank=Try(rate=3e-3, losses=_falling(0.67)),
    )


@image_adds_nothing.good
def looks_at_once() -> ImageNeeded:
    """Below what the text tells: no need to learn it without the images."""
    return ImageNeeded(ambiguous=8, supervised=24, shown=Try(rate=3e-3, losses=_falling(0.22)))


@image_adds_nothing.good
def too_early_to_tell() -> ImageNeeded:
    return ImageNeeded(
        ambiguous=8,
        supervised=24,
        shown=Try(rate=3e-5, losses=_falling(4.1)),
        blank=Try(rate=3e-5, losses=_falling(4.1)),
    )


@image_adds_nothing.good
def time_was_up() -> ImageNeeded:
    return ImageNeeded(
        ambiguous=8,
        supervised=24,
        shown=Try(rate=3e-3, losses=_falling(0.66)[:30]),
        blank=Try(rate=3e-3, losses=()),
    )
