"""Shifts the labels back to their own tokens."""

from __future__ import annotations

import torch

from vlmdoctor.bench import Bench
from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.forward import IGNORED_LABEL
from vlmdoctor.finding import Finding
from vlmdoctor.proving import Tried

DEPTH = "forward"
COPIES = True
OF_PARAMETERS = False


def mend(bench: Bench, finding: Finding, gather: Gatherer) -> Tried:
    """Where the labels are ahead of the ids, and not where the model's own loss shifts too far."""
    ahead = finding.measured.get("labels_ahead_by", 0)
    labels = bench.batch.get("labels") if isinstance(bench.batch, dict) else None
    if ahead < 1 or not isinstance(labels, torch.Tensor):
        raise Unavailable("the shift is the model's own, and not in the labels")
    moved = labels.roll(ahead, dims=-1)
    moved[..., :ahead] = IGNORED_LABEL
    bench.batch = {**bench.batch, "labels": moved}
    return Tried(f"the labels shifted back by {ahead}")
