"""Whether one batch is learned beyond what its text tells, where only the images tell its answers apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.forward import passed
from vlmdoctor.evidence.overfit import Try

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "steps"
STEPS = 60


@dataclass(frozen=True)
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


def probe(subject: Subject, gather: Callable[[type], Any]) -> ImageNeeded:
    """Looks for questions that only the images answer; only if there are any it learns them on copies."""
    from vlmdoctor.evidence.image_needed_tried import tried
    from vlmdoctor.unchanged import unchanged
    from vlmdoctor.watching.nonfinite import communicates

    forward = passed(gather, loss=True, finite=True)
    backward: Backward = gather(Backward)
    if not forward.loss or forward.loss < 0:
        raise Unavailable("there is no positive loss to bring down")
    if backward.failure is not None or not any(
        g.present and g.finite and not g.zero for g in backward.gradients
    ):
        raise Unavailable("no parameter gets a gradient")
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    with unchanged(subject):
        return tried(subject, forward.loss)
