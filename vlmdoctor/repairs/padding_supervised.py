"""Takes padding out of the labels."""

from __future__ import annotations

import torch

from vlmdoctor.bench import Bench
from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.evidence.forward import IGNORED_LABEL
from vlmdoctor.finding import Finding
from vlmdoctor.proving import Tried

DEPTH = "static"
COPIES = True
OF_PARAMETERS = False


def mend(bench: Bench, finding: Finding, gather: Gatherer) -> Tried:
    """Only in the batch: a data set with its collator is not ours to rewrite."""
    known: Data = gather(Data)
    if any(row.origin != "batch" for row in known.rows):
        raise Unavailable("the labels come from the data set")
    ids, labels = bench.batch["input_ids"], bench.batch["labels"]
    mask = bench.batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape:
        raise Unavailable("the batch has no attention mask that tells what padding is")
    wrong = mask == 0
    bench.batch = {**bench.batch, "labels": labels.masked_fill(wrong, IGNORED_LABEL)}
    return Tried("padding set to -100 in the labels")
