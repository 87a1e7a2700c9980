"""The training passes of one optimizer step: their losses, labels and images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlmdoctor.watching.batch import count_images, supervised
from vlmdoctor.watching.nonfinite import Forward, find_loss


class Passes:
    """What the forward passes since the last optimizer step have shown; micro-batches add up.

    Attributes:
        count: How many there were.
        images: Their images; None where that can't be told.
        supervised: Numbers of supervised labels, on the device.
        last: The last pass, where it is kept.
    """

    def __init__(self) -> None:
        self.count = 0
        self.images: int | None = 0
        self.supervised: list[Tensor] = []
        self.last: Forward | None = None
        self._losses: list[float] = []
        self._summed = False

    @property
    def loss(self) -> float | None:
        """The mean of the losses, or the sum where each was divided by the whole batch's tokens."""
        if not self._losses:
            return None
        return sum(self._losses) / (1 if self._summed else len(self._losses))

    @property
    def any_images(self) -> int | None:
        """The images; None also where there was no pass."""
        return self.images if self.count else None

    def add(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Counts a pass by what it was called with; reads no tensor."""
        self.count += 1
        images = count_images(args, kwargs)
        self.images = None if images is None or self.images is None else self.images + images
        self._summed = kwargs.get("num_items_in_batch") is not None

    def add_labels(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Counts its labels, on their device."""
        if (labels := supervised(args, kwargs)) is not None:
            self.supervised.append(labels)

    def read_loss(self, output: Any) -> float | None:
        """Reads the loss in the model's output; None where it has none."""
        loss = find_loss(output)
        if loss is None:
            return None
        self._losses.append(float(loss.detach()))
        return self._losses[-1]
