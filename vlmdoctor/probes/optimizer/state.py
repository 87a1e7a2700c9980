"""What an optimizer has kept of steps that it took before: of resumed runs, whether it fits the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.optimizer_state import OptimizerState
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.optimizer.settings import unwrapped
from vlmdoctor.subject import Subject, optimizers

_LIKE_THE_WEIGHT = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def probe(subject: Subject, gather: Callable[[type], Any]) -> OptimizerState:
    """Reads shapes and counters; nothing is stepped."""

    given = [unwrapped(one) for one in optimizers(subject.optimizer)]
    given = [one for one in given if isinstance(one, torch.optim.Optimizer)]
    if not given or subject.model is None:
        raise Unavailable("no optimizer was given")
    names = {id(p): canonical_name(name) for name, p in subject.model.named_parameters()}
    held = [
        (one, p, one.state[p])
        for one in given
        for group in one.param_groups
        for p in group["params"]
        if one.state.get(p)
    ]
    if not held:
        raise Unavailable("the optimizer has taken no step yet")
    misfits = [
        (names.get(id(p), "a tensor that is not the model's"), tuple(p.shape), tuple(state[key].shape))
        for one, p, state in held
        for key in _LIKE_THE_WEIGHT
        # Others than torch's own may keep it in a form of their own, such as GaLore's of low rank.
        if type(one).__module__.startswith("torch.optim")
        and isinstance(state.get(key), torch.Tensor)
        and state[key].shape != p.shape
    ]
    schedulers = subject.lr_scheduler
    scheduler = schedulers[0] if isinstance(schedulers, list | tuple) and schedulers else schedulers
    scheduler = getattr(scheduler, "scheduler", scheduler)
    group = given[0].param_groups[0]
    return OptimizerState(
        tensors=len(held),
        misfits=tuple(dict.fromkeys(misfits)),
        steps=max((int(state["step"]) for _, _, state in held if "step" in state), default=0),
        lr=_number(group.get("lr")),
        initial_lr=_number(group.get("initial_lr")),
        scheduler=None if scheduler is None else type(scheduler).__name__,
        last_epoch=getattr(scheduler, "last_epoch", None),
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
