"""What a model does with the right images, with those of other samples, and with blank ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SURE = 3.0  # standard errors of a paired difference
FEWEST = 8  # samples: with fewer nothing is said
LEAST = 0.02  # of the loss: a smaller difference is none that anybody would call using the images
KINDS = ("right", "shuffled", "blank")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One kind of images.

    Attributes:
        images: `right`, `shuffled` or `blank`.
        loss: Mean over samples of the mean loss of their supervised tokens, in nats.
        accuracy: Share of supervised tokens that are the likeliest, given those before, 0 to 1; or the mean
            of what `metric` gave. None where neither can be had.
        loss_error: Standard error of the difference in loss to the right images; None for these themselves.
        accuracy_error: The same for accuracy.
    """

    images: str
    loss: float | None
    accuracy: float | None
    loss_error: float | None = None
    accuracy_error: float | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class ImageUse:
    """The answer of `vlmdoctor.uses_images`.

    Attributes:
        measured: With the right images, then shuffled and blank ones where that was possible.
        samples: How many samples were compared.
        metric: What `accuracy` is.
        not_tried: Kind of images -> why it was not tried.
    """

    measured: tuple[Measured, ...]
    samples: int
    metric: str = "accuracy"
    not_tried: dict[str, str] = field(default_factory=dict)

    def of(self, images: str) -> Measured | None:
        """What was measured with this kind of images; None where it was not tried."""
        return next((one for one in self.measured if one.images == images), None)

    @property
    def uses_images(self) -> bool | None:
        """Whether the right images are better than all others that were tried; None where not certain.

        Blank images count too: any image disturbs a model that was trained without any.
        """
        others = [one for one in self.measured if one.images != "right"]
        if self.samples < FEWEST or not others:
            return None
        answers = [self._better(one) for one in others]
        if all(answer is True for answer in answers):
            return True
        return False if any(answer is False for answer in answers) else None

    def _better(self, other: Measured) -> bool | None:
        """Whether the right images beat these: by the loss, else by the accuracy."""
        right = self.measured[0]
        if right.loss is not None and other.loss is not None and other.loss_error is not None:
            gain, error, least = other.loss - right.loss, other.loss_error, LEAST * abs(right.loss)
        elif right.accuracy is not None and other.accuracy is not None and other.accuracy_error is not None:
            gain, error, least = right.accuracy - other.accuracy, other.accuracy_error, LEAST
        else:
            return None
        if not math.isfinite(gain):
            return None
        if gain > max(SURE * error, least):
            return True
        # That nothing is gained has to be as sure as that something is.
        return False if gain + SURE * error < max(least, 1e-9) else None

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        if self.samples < FEWEST:
            return (
                f"Too few samples to tell whether it uses its images: {self.samples}, of {FEWEST} at least."
            )
        if not [one for one in self.measured if one.images != "right"]:
            return "It could not be tried with other images."
        # Before it is trained a model uses nothing.
        untrained = all(one.accuracy == 0 for one in self.measured)
        return {
            True: "It uses its images.",
            False: "It does not use its images yet: no answer is right, with these images or others."
            if untrained
            else "It does not use its images: others do as well.",
            None: "Whether it uses its images is not certain: the difference is within the error.",
        }[self.uses_images]

    def __repr__(self) -> str:
        return f"<ImageUse: {self.sentence} {self.samples:,} samples.>"

    def __str__(self) -> str:
        lines = [f"{self.sentence} {self.samples:,} samples."]
        for one in self.measured:
            loss = "" if one.loss is None else f"loss {one.loss:.4f}"
            error = "" if one.loss_error is None else f" ± {one.loss_error:.4f}"
            score = "" if one.accuracy is None else f"{self.metric} {one.accuracy:.4g}"
            lines.append(f"  {one.images:<9} {f'{loss}{error}':<24} {score}".rstrip())
        lines += [f"  {images:<9} not tried: {why}" for images, why in self.not_tried.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready plain values."""
        return {
            "uses_images": self.uses_images,
            "sentence": self.sentence,
            "samples": self.samples,
            "metric": self.metric,
            "measured": [vars(one).copy() for one in self.measured],
            "not_tried": dict(self.not_tried),
        }

    def plot(self) -> Figure:
        """A bar for each kind of images, with three standard errors of the difference to the right ones."""
        from vlmdoctor.image_use.plot import plot

        return plot(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
