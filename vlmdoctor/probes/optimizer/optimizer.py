"""The settings of the optimizer's groups, its state from earlier steps, and the scheduler of its rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.optimizer import Group, Optimizer
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.optimizer.state import state_of
from vlmdoctor.subject import Subject, optimizers


def probe(subject: Subject, gather: Callable[[type], Any]) -> Optimizer:
    """Reads groups, shapes and counters; nothing is stepped."""
    given = [one for one in optimizers(subject.optimizer) if isinstance(_groups(one), list)]
    if not given:
        raise Unavailable("no optimizer was given")
    names = {id(p): canonical_name(name) for name, p in subject.model.named_parameters()}
    schedulers = subject.lr_scheduler
    schedulers = schedulers if isinstance(schedulers, list | tuple) else [schedulers]
    scheduled = [(one, _groups(_optimizer_of(one))) for one in schedulers]
    scheduled = [(one, groups) for one, groups in scheduled if isinstance(groups, list)]
    own = {id(group) for one in given for group in _groups(one)}
    foreign = [not own & set(map(id, groups)) for _, groups in scheduled]
    return Optimizer(
        groups=tuple(_group(type(_unwrapped(one)).__name__, g, names) for one in given for g in _groups(one)),
        scheduler=type(scheduled[0][0]).__name__ if scheduled else None,
        scheduler_foreign=bool(foreign) and all(foreign),
        state=state_of(map(_unwrapped, given), schedulers, names),
    )


def _group(optimizer: str, group: dict[str, Any], names: dict[int, str]) -> Group:
    def number(key: str) -> float | None:
        value = group.get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    tensors = list(group["params"])
    return Group(
        optimizer=optimizer,
        lr=number("lr"),
        weight_decay=number("weight_decay"),
        eps=number("eps"),
        maximize=group.get("maximize") is True,
        tensors=len(tensors),
        first=next((names[id(t)] for t in tensors if id(t) in names), None),
    )


def _optimizer_of(scheduler: Any) -> Any:
    """The optimizer whose rates a scheduler sets, also behind accelerate's wrapper; None where unknown."""
    inner = getattr(scheduler, "scheduler", scheduler)
    return getattr(inner, "optimizer", None)


def _groups(optimizer: Any) -> Any:
    return getattr(_unwrapped(optimizer), "param_groups", None)


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer inside accelerate's and other wrappers."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if isinstance(getattr(inner, "param_groups", None), list) else optimizer
