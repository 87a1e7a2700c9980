"""Sets requires_grad for what is frozen, and measures whether it learns."""

from __future__ import annotations

from vlmdoctor.engine import Gatherer
from vlmdoctor.finding import Finding
from vlmdoctor.proof.prove import Attempt, Measurement
from vlmdoctor.proof.workbench import Workbench

DEPTH = "backward"
COPIES = True
OF_PARAMETERS = True


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """Sets requires_grad, and adds to the optimizer what is not in it."""
    chosen = bench.parameters(finding.parameters)
    for parameter in chosen.values():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    added = bench.add_to_optimizer(finding.parameters)
    also = f" and {added} of them added to the optimizer" if added else ""
    return Attempt(f"requires_grad set for {len(chosen)} tensors{also}")


def measure(bench: Workbench, finding: Finding) -> Measurement:
    """How many of them get a gradient; with an optimizer also how the loss goes."""
    wanted = set(finding.parameters)
    reached = bench.reached().names & wanted
    text = f"{len(reached)} of {len(wanted)} get a gradient"
    if not bench.optimizers:
        return Measurement(text, 2 * len(reached) > len(wanted))
    trained = bench.trained()
    way = "falls" if trained.falls else "goes"
    text += f", the loss {way} from {trained.losses[0]:.4g} to {trained.losses[-1]:.4g}"
    text += f" in {len(trained.losses) - 1} steps"
    return Measurement(text, 2 * len(reached) > len(wanted) and trained.falls)
