"""The table of modules, with repeated layers folded into one row."""

from __future__ import annotations

import re

from torch import nn

from vlmdoctor.dryrun.step import DryStep, Visit
from vlmdoctor.evidence.shapes import ModuleShape
from vlmdoctor.knowledge.parameter_names import canonical_name

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def folded(model: nn.Module, step: DryStep) -> tuple[ModuleShape, ...]:
    """One row for each module; modules alike but for a number in their name share one."""
    flops = _with_parts(step.flops)
    groups: dict[tuple[object, ...], list[ModuleShape]] = {}
    for raw_name, module in model.named_modules():
        name = canonical_name(raw_name + ".").rstrip(".")
        row = _row(name, module, step, flops.get(name, 0))
        shape = _NUMBER.sub("*", name)
        groups.setdefault((shape, row.kind, row.parameters, row.shape_in, row.shape_out), []).append(row)
    return tuple(_merged(rows) for rows in groups.values())


def _with_parts(flops: dict[str, int]) -> dict[str, int]:
    """Operations of each module, those of the modules inside it included."""
    sums: dict[str, int] = {}
    for name, count in flops.items():
        parts = name.split(".") if name else []
        for depth in range(len(parts) + 1):
            above = ".".join(parts[:depth])
            sums[above] = sums.get(above, 0) + count
    return sums


def _row(name: str, module: nn.Module, step: DryStep, flops: int) -> ModuleShape:
    visit = step.visits.get(name, Visit())
    own = list(module.parameters())
    finished = step.error is None and step.loss
    learning = [p for p in own if p.requires_grad]
    return ModuleShape(
        name=name or type(module).__name__,
        kind=type(module).__name__,
        count=1,
        parameters=sum(p.numel() for p in own),
        trainable=sum(p.numel() for p in learning),
        shape_in=visit.shape_in,
        shape_out=visit.shape_out,
        kept=visit.kept,
        flops=flops,
        gradient=all(p.grad is not None for p in learning) if learning and finished else None,
    )


def _merged(rows: list[ModuleShape]) -> ModuleShape:
    first = rows[0]
    if len(rows) == 1:
        return first
    gradients = {row.gradient for row in rows}
    return ModuleShape(
        name=_NUMBER.sub("*", first.name),
        kind=first.kind,
        count=len(rows),
        parameters=sum(row.parameters for row in rows),
        trainable=sum(row.trainable for row in rows),
        shape_in=first.shape_in,
        shape_out=first.shape_out,
        kept=sum(row.kept for row in rows),
        flops=sum(row.flops for row in rows),
        gradient=gradients.pop() if len(gradients) == 1 else False,
    )
