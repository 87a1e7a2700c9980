"""Whether a prediction depends on the label that it is compared with: one label is changed at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.forward import passed

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "forward"


@dataclass(frozen=True)
class LabelLeak:
    """What became of the scores for a label when that label alone was changed.

    Attributes:
        tried: How many labels were changed, one after the other.
        moved: How far the scores of the changed label moved, at least.
        scale: The largest score.
        row, position: The last label that was changed.
    """

    tried: int
    moved: float
    scale: float
    row: int = 0
    position: int = 0


def probe(subject: Subject, gather: Callable[[type], Any]) -> LabelLeak:
    """Runs the model a few times with one label changed, and leaves it as it was."""
    from vlmdoctor.evidence.label_leak_seen import look
    from vlmdoctor.unchanged import unchanged
    from vlmdoctor.watching.nonfinite import communicates

    passed(gather, loss=True, finite=True)
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    with unchanged(subject):
        return look(subject)
