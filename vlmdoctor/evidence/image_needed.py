"""Whether one batch is learned better with its images, where the text alone does not tell its answers."""

from __future__ import annotations

from dataclasses import dataclass

from vlmdoctor.evidence.overfit import Try

DEPTH = "steps"
PROBE = "vlmdoctor.probes.training.image_needed"
STEPS = 60


@dataclass(frozen=True, kw_only=True)
class ImageNeeded:
    """What was learned from one batch with its images, and with one blank image in place of all.

    Attributes:
        ambiguous: Supervised tokens in front of which rows are equal in their text, differ in their images,
            and go on differently.
        supervised: All supervised tokens.
        shown: The steps with the images.
        blank: The steps without, on another copy at the same learning rate; None where those with them got
            below what the text tells, so that the images were of use.
    """

    ambiguous: int
    supervised: int
    shown: Try
    blank: Try | None = None
