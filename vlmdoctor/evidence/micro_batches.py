"""Whether a batch is the sum of its parts: the loss of all rows compared with that of a few at a time."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.loss.micro_batches"


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """A normalisation that takes its mean and variance from the batch while the model trains.

    Attributes:
        name: Canonical name.
        module_class: Its class.
        moved: How far its output for the first part is from that part's output in the whole batch, its input
            being the same there, as a share of the largest number in it; 0 where the input is not the same.
    """

    name: str
    module_class: str
    moved: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """The losses of a batch and of its parts, with dropout off.

    Attributes:
        rows: Rows of the batch.
        loss: The loss of the whole batch.
        losses: The losses of the parts, in their order, of those that have one.
        norms: The normalisations over the batch that were met, in the order in which they run.
        raised: What a part raised that the whole batch does not.
        experts: Whether tokens are sent to experts, which may balance their load over the batch.
        rounding: How far, as a share of the loss, passes of other shapes may differ.
    """

    rows: int
    loss: float
    losses: tuple[float, ...] = ()
    norms: tuple[BatchNorm, ...] = ()
    raised: str | None = None
    experts: bool = False
    rounding: float = 1e-3

    @property
    def first_norm(self) -> BatchNorm | None:
        """The first normalisation whose output was measured to depend on the other rows."""
        return next((norm for norm in self.norms if norm.moved > self.rounding), None)

    @property
    def is_a_mean(self) -> bool:
        """Whether the loss of the batch can be a mean of its parts', however weighted, or their sum."""
        if len(self.losses) < 2:
            return True
        room = 20 * self.rounding * max(abs(loss) for loss in (self.loss, *self.losses))
        if min(self.losses) - room <= self.loss <= max(self.losses) + room:
            return True
        return abs(sum(self.losses) - self.loss) <= room
