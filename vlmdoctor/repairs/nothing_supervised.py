"""Takes the labels from the token ids, and measures whether the rest of the model would learn."""

from __future__ import annotations

import torch

from vlmdoctor.engine import Gatherer
from vlmdoctor.finding import Finding
from vlmdoctor.probes.batch.fields import Inputs, standard
from vlmdoctor.probes.forward_result import supervised_tokens
from vlmdoctor.proof.prove import Attempt, Measurement
from vlmdoctor.proof.relabel import relabel
from vlmdoctor.proof.workbench import Workbench

DEPTH = "backward"
COPIES = True
OF_PARAMETERS = False
_IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "image_token")


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """Every token is its own label, but padding and image placeholders."""

    def made(inputs: Inputs) -> torch.Tensor:
        ids = inputs[inputs.ids]
        labels = ids.masked_fill(~inputs.valid, inputs.ignored)
        config = getattr(bench.model, "config", None)
        for name in _IMAGE_TOKENS:
            if isinstance(token := getattr(config, name, None), int):
                labels[ids == token] = inputs.ignored
        return labels

    relabel(bench, gather, made)
    return Attempt("the labels taken from the token ids")


def measure(bench: Workbench, finding: Finding) -> Measurement:
    """How many labels there are, and how many tensors get a gradient."""
    reached = bench.reached()
    trainable = sum(1 for p in bench.parameters().values() if p.requires_grad)
    labels = supervised_tokens(standard(bench.model, bench.batch, bench.loss_fn)) or 0
    text = f"{labels} labels, {len(reached.names)} of {trainable} tensors get a gradient"
    return Measurement(text, labels > 0 and bool(reached.names))
