"""Computes the tables again from their module's own configuration, and measures the loss with them."""

from __future__ import annotations

import torch

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.finding import Finding
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.positions.buffers import fresh
from vlmdoctor.proof.prove import Attempt
from vlmdoctor.proof.workbench import Workbench

DEPTH = "forward"
COPIES = True
OF_PARAMETERS = False


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """Every table that the finding names, where its module can be created again."""
    before = _loss(bench)
    made = 0
    for prefix, module in bench.model.named_modules():
        names = {canonical_name(f"{prefix}.{name}" if prefix else name): name for name in module._buffers}
        wanted = [own for name, own in names.items() if name in finding.at]
        copy = fresh(module) if wanted else None
        for name in wanted:
            table, held = getattr(copy, name, None), module._buffers[name]
            if isinstance(table, torch.Tensor) and held is not None and table.shape == held.shape:
                module._buffers[name] = table.detach().to(held.device)
                made += 1
    if made < len(finding.at):
        raise Unavailable("the module can't be created again from its own attributes")
    tables = "the table" if made == 1 else f"the {made} tables"
    return Attempt(f"{tables} computed again, and the loss goes from {before:.4g} to {_loss(bench):.4g}")


def _loss(bench: Workbench) -> float:
    with torch.no_grad():
        return float(bench.loss())
