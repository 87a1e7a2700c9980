"""Whether a prediction depends on the label that it is compared with: one label is changed at a time."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.loss.label_leak"


@dataclass(frozen=True, kw_only=True)
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
