"""Masks the image tokens in the labels."""

from __future__ import annotations

import torch

from vlmdoctor.engine import Gatherer
from vlmdoctor.evidence.data import Data
from vlmdoctor.finding import Finding
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.proof.prove import Attempt
from vlmdoctor.proof.relabel import relabel, without
from vlmdoctor.proof.workbench import Workbench

DEPTH = "static"
COPIES = True
OF_PARAMETERS = False


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """Where a placeholder is, and where one is the label."""
    known: Data = gather(Data)

    def made(inputs: Inputs) -> torch.Tensor:
        ids, labels = inputs[inputs.ids], inputs[inputs.labels]
        images = ids.new_tensor(list(known.words.image_ids))
        return without(inputs, torch.isin(ids, images) | torch.isin(labels, images))

    relabel(bench, gather, made)
    return Attempt("the image tokens set to -100 in the labels")
