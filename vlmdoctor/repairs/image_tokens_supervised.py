"""Takes the image placeholders out of the labels."""

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
    wrong = torch.isin(ids, ids.new_tensor(list(known.words.image_ids)))
    wrong |= torch.isin(labels, labels.new_tensor(list(known.words.image_ids)))
    bench.batch = {**bench.batch, "labels": labels.masked_fill(wrong, IGNORED_LABEL)}
    return Tried("the image placeholders set to -100 in the labels")
