"""Fixes what keeps weights from changing: not in the optimizer, a rate of 0, updates rounded away."""

from __future__ import annotations

import torch

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding
from vlmdoctor.proof.prove import Attempt, Measurement
from vlmdoctor.proof.workbench import Workbench
from vlmdoctor.repairs import optimizer_holds_other_tensors

DEPTH = "steps"
COPIES = True
OF_PARAMETERS = True
MOVES = 0.1  # of the elements: with rounding hardly any does
USUAL_RATE = 1e-4


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """The repair that matches the optimizer and the data type."""
    known: Parameters = gather(Parameters)
    meant = [p for p in known.parameters if p.name in finding.parameters]
    if not bench.optimizers:
        raise Unavailable("no optimizer was given")
    if all(p.in_optimizer == 0 for p in meant):
        if known.foreign:
            return optimizer_holds_other_tensors.apply(bench, finding, gather)
        added = bench.add_to_optimizer(finding.parameters)
        return Attempt(f"the {added} tensors added to the optimizer")
    if all(p.lr == 0 for p in meant):
        return _rate(bench, known)
    if any(p.dtype in ("bfloat16", "float16") for p in meant):
        bench.model.float()
        bench.batch = _in_float32(bench.batch)
        return Attempt("the weights in float32")
    raise Unavailable("which repair is needed is not known")


def _rate(bench: Workbench, known: Parameters) -> Attempt:
    rate = max((p.lr for p in known.parameters if p.lr), default=USUAL_RATE)
    for group in (group for optimizer in bench.optimizers for group in optimizer.param_groups):
        if group.get("lr") == 0:
            group["lr"] = rate
    bench.schedulers.clear()  # they would set it to 0 again
    return Attempt(f"a learning rate of {rate:.3g} for them")


def measure(bench: Workbench, finding: Finding) -> Measurement:
    """How many of the tensors, and of their elements, have changed after a few steps."""
    before = {name: p.detach().clone() for name, p in bench.parameters(finding.parameters).items()}
    steps = len(bench.trained().losses) - 1
    after = bench.parameters(finding.parameters)
    changed = {name: int((p.detach() != before[name]).sum()) for name, p in after.items()}
    share = sum(changed.values()) / max(1, sum(p.numel() for p in after.values()))
    moved = sum(1 for count in changed.values() if count)
    return Measurement(
        f"{moved} of {len(after)} change in {steps} steps, {share:.0%} of their elements",
        2 * moved > len(after) and share > MOVES,
    )


def _in_float32(batch: object) -> object:
    if isinstance(batch, torch.Tensor):
        return batch.float() if batch.dtype in (torch.bfloat16, torch.float16) else batch
    if isinstance(batch, dict):
        return {key: _in_float32(value) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_in_float32(value) for value in batch)  # type: ignore[attr-defined,call-arg]
    return batch
