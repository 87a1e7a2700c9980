"""What an optimizer has kept of steps that it took before: of resumed runs, whether it fits the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from vlmdoctor.evidence.optimizer import OptimizerState

_LIKE_THE_WEIGHT = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def state_of(
    given: Iterable[Any], schedulers: Sequence[Any], names: Mapping[int, str]
) -> OptimizerState | None:
    """Reads shapes and counters; None where no optimizer of torch's kind has taken a step.

    Args:
        given: The optimizers, without wrappers.
        schedulers: What sets their rates.
        names: Names of the model's parameters, by identity.
    """
    given = [one for one in given if isinstance(one, torch.optim.Optimizer)]
    held = [
        (one, p, one.state[p])
        for one in given
        for group in one.param_groups
        for p in group["params"]
        if one.state.get(p) and isinstance(one.state[p], Mapping)
    ]
    if not held:
        return None
    misfits = [
        (names.get(id(p), "a tensor that is not the model's"), tuple(p.shape), tuple(state[key].shape))
        for one, p, state in held
        for key in _LIKE_THE_WEIGHT
        # Others than torch's own may keep it in a form of their own, such as GaLore's of low rank.
        if type(one).__module__.startswith("torch.optim")
        and isinstance(state.get(key), torch.Tensor)
        and state[key].shape != p.shape
    ]
    scheduler = schedulers[0] if schedulers else None
    scheduler = getattr(scheduler, "scheduler", scheduler)
    group = given[0].param_groups[0]
    return OptimizerState(
        tensors=len(held),
        misfits=tuple(dict.fromkeys(misfits)),
        steps=max((_count(state.get("step")) for _, _, state in held), default=0),
        lr=_number(group.get("lr")),
        initial_lr=_number(group.get("initial_lr")),
        scheduler=None if scheduler is None else type(scheduler).__name__,
        last_epoch=getattr(scheduler, "last_epoch", None),
    )


def _count(value: Any) -> int:
    """A counter, or 0 for what an optimizer of the user's own keeps in its place."""
    try:
        return int(value)
    except (TypeError, ValueError, RuntimeError):
        return 0


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
