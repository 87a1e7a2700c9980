"""The table of modules, with repeated layers folded into one row."""

from __future__ import annotations

import re

from torch import nn

from vlmdoctor.dryrun.step import DryStep, Visit
from vlmdoctor.evidence.shapes import ModuleShape
from vlmdoctor.subject import canonical_name

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def folded(model: nn.Module, step: DryStep) -> tuple[ModuleShape, ...]:
    """One row for each module; modules alike but for a number in their name share one."""
    groups: dict[tuple[object, ...], list[ModuleShape]] = {}
    for raw_name, module in model.named_modules():
        name = canonical_name(raw_name + ".").rstrip(".")
        row = _row(name, module, step)
        shape = _NUMBER.sub("*", name)
        groups.setdefault((shape, row.kind, row.parameters, row.shape_in, row.shape_out), []).append(row)
    return tuple(_merged(rows) for rows in groups.values())


def _row(name: str, module: nn.Module, step: DryStep) -> ModuleShape:
    visit = step.visits.get(name, Visit())
    own = list(module.named_parameters())
    finished = step.error is None and step.loss
    learning = [p for _, p in own if p.requires_grad]
    inside = f"{name}." if name else ""
    return ModuleShape(
        name=name or type(module).__name__,
        kind=type(module).__name__,
        count=1,
        parameters=sum(p.numel() for _, p in own),
        trainable=sum(p.numel() for _, p in own if p.requires_grad),
        shape_in=visit.shape_in,
        shape_out=visit.shape_out,
        kept=visit.kept,
        flops=sum(n for where, n in step.flops.items() if where == name or where.startswith(inside)),
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
