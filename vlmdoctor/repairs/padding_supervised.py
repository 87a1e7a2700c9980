"""Masks padding in the labels."""

from __future__ import annotations

import torch

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.finding import Finding
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.proof.prove import Attempt
from vlmdoctor.proof.relabel import relabel, without
from vlmdoctor.proof.workbench import Workbench

DEPTH = "static"
COPIES = True
OF_PARAMETERS = False


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """Uses the batch's own attention mask."""

    def made(inputs: Inputs) -> torch.Tensor:
        if inputs.mask is None:
            raise Unavailable("the batch has no attention mask that shows its padding")
        return without(inputs, ~inputs.valid)

    relabel(bench, gather, made)
    return Attempt("padding set to -100 in the labels")
