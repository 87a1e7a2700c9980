"""Adds the missing parameters to the optimizer, and measures whether everything changes."""

from __future__ import annotations

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.finding import Finding
from vlmdoctor.proof.prove import Attempt, Measurement
from vlmdoctor.proof.workbench import Workbench

DEPTH = "backward"
COPIES = True
OF_PARAMETERS = True


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """Adds them to the first optimizer, with its largest learning rate."""
    added = bench.add_to_optimizer(finding.parameters)
    if not added:
        raise Unavailable("the optimizer holds them, or there is none")
    return Attempt(f"the {added} tensors added to the optimizer")


def measure(bench: Workbench, finding: Finding) -> Measurement:
    """How many of the trainable tensors change, and of those that the finding is about."""
    trainable = {name for name, p in bench.parameters().items() if p.requires_grad}
    moved = bench.trained().moved & trainable
    meant = set(finding.parameters)
    every = "all " if moved == trainable else f"{len(moved)} of "
    return Measurement(
        f"{every}{len(trainable)} trainable tensors change", 2 * len(moved & meant) > len(meant)
    )
