"""The training passes of one optimizer step: their losses, labels and images."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlmdoctor.sandbox.call import loss_itself
from vlmdoctor.watching.batch import count_images, supervised
from vlmdoctor.watching.guarded import attempted
from vlmdoctor.watching.replay import ReplayInput

_KEY = "vlmdoctor"  # in what a graph says of itself


class Passes:
    """What the forward passes since the last optimizer step have shown; micro-batches add up.

    Attributes:
        count: How many there were.
        images: Their images; None where that is not known.
        supervised: Numbers of supervised labels, on the device.

    Args:
        labels: What a call names its labels, where it is not `labels`.
    """

    def __init__(self, labels: str | None = None) -> None:
        self.count = 0
        self._labels = labels or "labels"
        self.images: int | None = 0
        self.supervised: list[Tensor] = []
        self._last: weakref.ref[ReplayInput] | None = None
        self._held: ReplayInput | None = None
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

    @property
    def last(self) -> ReplayInput | None:
        """The last pass, where it was kept and its graph is still there."""
        return self._last() if self._last is not None else None

    def keep(self, forward: ReplayInput, loss: Tensor | None) -> None:
        """Keeps a pass as long as the graph of its loss lives, and no longer: without that no gradient can
        come of it."""
        self.forget()
        if loss is not None and loss.grad_fn is not None:
            loss.grad_fn.metadata[_KEY] = forward  # type: ignore[index]  # a property, and no method
            self._last = weakref.ref(forward)

    def hold(self) -> None:
        """Keeps it in any case: something is wrong with its gradients, and it will be needed."""
        self._held = self.last

    def forget(self) -> None:
        """Lets go of the pass that was kept."""
        self._held = None
        if (last := self.last) is not None:
            last.forget()
        self._last = None

    def add(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Counts a pass by what it was called with; reads no tensor."""
        self.count += 1
        images = attempted(count_images, args, kwargs)
        self.images = None if images is None or self.images is None else self.images + images
        self._summed = kwargs.get("num_items_in_batch") is not None

    def add_labels(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Counts its labels, on their device."""
        if (labels := attempted(supervised, args, kwargs, self._labels)) is not None:
            self.supervised.append(labels)

    def loss_in(self, output: Any) -> Tensor | None:
        """The loss in the model's output; None where it has none that can be read."""
        loss = attempted(loss_itself, output)
        return None if loss is None or loss.is_meta else loss

    def read(self, loss: Tensor | None) -> float | None:
        """Reads and counts a loss."""
        value = None if loss is None else attempted(float, loss.detach())
        if value is not None:
            self._losses.append(value)
        return value
