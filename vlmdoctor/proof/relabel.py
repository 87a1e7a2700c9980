"""Other labels for a batch on the bench, whatever the batch calls them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.proof.workbench import Workbench


def relabel(bench: Workbench, gather: Gatherer, made: Callable[[Inputs], torch.Tensor]) -> None:
    """Gives the batch the labels that `made` makes of its parts.

    Raises:
        Unavailable: The labels come from the data set, which with its collator is not ours to rewrite; or
            there are none beside the ids.
    """
    known: Data = gather(Data)
    if any(row.origin != "batch" for row in known.rows):
        raise Unavailable("the labels come from the data set")
    inputs = Inputs(innermost(bench.model), bench.batch, apart=bench.loss_fn is not None)
    if inputs.ids is None or inputs.labels is None or inputs[inputs.ids].shape != inputs[inputs.labels].shape:
        raise Unavailable("the batch has no labels of the shape of its token ids")
    bench.batch = inputs.with_(**{inputs.labels: made(inputs)})


def without(inputs: Inputs, where: torch.Tensor) -> torch.Tensor:
    """The labels, left out `where` [B, T] is true."""
    return inputs[inputs.labels].masked_fill(where, inputs.ignored)
