"""Takes the labels from the token ids, and sees whether the rest of the model would learn."""

from __future__ import annotations

import torch

from vlmdoctor.bench import Bench
from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.forward import IGNORED_LABEL, supervised_tokens
from vlmdoctor.finding import Finding
from vlmdoctor.proving import Measured, Tried

DEPTH = "backward"
COPIES = True
OF_PARAMETERS = False
_IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "image_token")


def mend(bench: Bench, finding: Finding, gather: Gatherer) -> Tried:
    """Every token is its own label, but padding and image placeholders."""
    batch = bench.batch
    ids = batch.get("input_ids") if isinstance(batch, dict) else None
    labels = batch.get("labels") if isinstance(batch, dict) else None
    if not isinstance(ids, torch.Tensor) or not isinstance(labels, torch.Tensor) or ids.shape != labels.shape:
        raise Unavailable("the batch has no labels of the shape of its input_ids")
    made = ids.clone()
    mask = batch.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
        made[mask == 0] = IGNORED_LABEL
    config = getattr(bench.model, "config", None)
    for name in _IMAGE_TOKENS:
        if isinstance(token := getattr(config, name, None), int):
            made[ids == token] = IGNORED_LABEL
    bench.batch = {**batch, "labels": made}
    return Tried("the labels taken from the token ids")


def measure(bench: Bench, finding: Finding) -> Measured:
    """How many labels there are, and how many tensors get a gradient."""
    reached = bench.reached()
    trainable = sum(1 for p in bench.parameters().values() if p.requires_grad)
    labels = supervised_tokens(bench.batch) or 0
    text = f"{labels} labels, {len(reached.names)} of {trainable} tensors get a gradient"
    return Measured(text, labels > 0 and bool(reached.names))
