"""What changes the logits, and what must not: one part of the batch is changed, and the model run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmdoctor.errors import Unavailable

DEPTH = "forward"
PROBE = "vlmdoctor.probes.influence.plan"


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one change of the input did to logits that it must not move (or, for the images, must move).

    Attributes:
        what: What was changed, in words.
        moved: How far the logits moved, at most.
        allowed: How far they may move: what rounding explains in this model.
        effect: How far the same change moved logits that it may move; None where there are none to compare.
        positions: How many token positions were compared.
        moved_positions: How many of them moved by more than `allowed`.
        row: The row of the batch in which one moved most.
        position: The token position there.
        detail: Whatever else was seen, as plain values.
    """

    what: str
    moved: float
    allowed: float
    effect: float | None = None
    positions: int = 0
    moved_positions: int = 0
    row: int | None = None
    position: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def moves(self) -> bool:
        """Whether they moved by more than rounding explains."""
        return self.moved > self.allowed


@dataclass(frozen=True, kw_only=True)
class Influence:
    """The changes that were tried.

    Attributes:
        changes: By name: `images`, `image-of-another`, `text`, `later-token`, `another-sample`,
            `packed-neighbour`, `padding`, `hidden-tokens`, `positions`, `backend`, `cache`.
        untried: Why the others were not tried.
        scale: The largest logit.
        rounding: How far an error of one rounding in the embeddings moves the logits.
    """

    changes: Mapping[str, Change] = field(default_factory=dict)
    untried: Mapping[str, str] = field(default_factory=dict)
    scale: float = 0.0
    rounding: float = 0.0

    def of(self, name: str) -> Change:
        """The change of this name; raises `Unavailable` with the reason where it was not tried."""
        if name not in self.changes:
            raise Unavailable(self.untried.get(name, "it was not tried on this batch"))
        return self.changes[name]
