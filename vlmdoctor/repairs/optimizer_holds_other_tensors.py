"""Gives the optimizer the model's own parameters, and measures whether they change."""

from __future__ import annotations

from collections import defaultdict

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.finding import Finding
from vlmdoctor.proof.prove import Attempt, Measurement
from vlmdoctor.proof.workbench import Workbench

DEPTH = "backward"
COPIES = True
OF_PARAMETERS = False


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """One group with all trainable parameters and the settings of the first group."""
    if not bench.optimizers or not bench.optimizers[0].param_groups:
        raise Unavailable("no optimizer was given")
    optimizer = bench.optimizers[0]
    trainable = [p for p in bench.parameters().values() if p.requires_grad]
    optimizer.param_groups[:] = [{**optimizer.param_groups[0], "params": trainable}]
    optimizer.state = defaultdict(dict)
    del bench.optimizers[1:]
    bench.schedulers.clear()  # they count the groups that were there when they were made
    return Attempt(f"a new optimizer for the model's {len(trainable)} trainable tensors")


def measure(bench: Workbench, finding: Finding) -> Measurement:
    """How many of the trainable tensors change."""
    trainable = {name for name, p in bench.parameters().items() if p.requires_grad}
    moved = bench.trained().moved & trainable
    every = "all " if moved == trainable else f"{len(moved)} of "
    return Measurement(f"{every}{len(trainable)} trainable tensors change", 2 * len(moved) > len(trainable))
