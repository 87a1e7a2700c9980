"""Shifts the labels back to their own tokens."""

from __future__ import annotations

import torch

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.finding import Finding
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.proof.prove import Attempt
from vlmdoctor.proof.relabel import relabel
from vlmdoctor.proof.workbench import Workbench

DEPTH = "forward"
COPIES = True
OF_PARAMETERS = False


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """Only where the labels are ahead of the ids, not where the model's own loss shifts too far."""
    ahead, more = finding.measured["labels_ahead_by"], finding.measured["loss_shifts_by"]
    too_far = min(ahead, ahead + more - 1)
    if too_far < 1:
        raise Unavailable("the shift is the model's own, and not in the labels")

    def made(inputs: Inputs) -> torch.Tensor:
        moved = inputs[inputs.labels].roll(too_far, dims=-1)
        moved[..., :too_far] = inputs.ignored
        return moved

    relabel(bench, gather, made)
    return Attempt(f"the labels shifted back by {too_far}")
