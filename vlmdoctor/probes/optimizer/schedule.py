"""The learning rate over the whole run, simulated on a copy of the scheduler without the model's weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.schedule import Schedule
from vlmdoctor.evidence.training_args import TrainingArgs
from vlmdoctor.plain_text import raised
from vlmdoctor.subject import Subject

POINTS = 2000
FIRST = 200
MOST_STEPS = 20_000  # stepped one by one: longer runs need a schedule that can be asked at any step


RESTARTING = ("CosineAnnealingWarmRestarts", "CyclicLR")


def probe(subject: Subject, gather: Callable[[type], Any]) -> Schedule:
    """Steps a copy of the scheduler, whose optimizer holds one number per group, through the run."""
    given = subject.lr_scheduler
    if isinstance(given, list | tuple) and given:
        given = given[0]
    if given is None:
        raise Unavailable("no lr_scheduler was given")
    arguments: TrainingArgs = gather(TrainingArgs)
    if arguments.steps is None:
        raise Unavailable("the length of the run is not known (training_args: max_steps)")
    inner = getattr(given, "scheduler", given)
    if not isinstance(inner, LRScheduler) or isinstance(inner, ReduceLROnPlateau):
        raise Unavailable(f"the schedule of a {type(inner).__name__} can't be predicted")
    # accelerate steps a prepared scheduler once for each process.
    prepared = inner is not given and type(given).__name__ == "AcceleratedScheduler"
    per_step = arguments.world_size if prepared and not getattr(given, "split_batches", False) else 1
    left = arguments.steps - max(0, inner.last_epoch) // per_step  # a resumed run is partly over
    if left < 1:
        raise Unavailable("the scheduler is at the end of the run already")
    group = max(range(len(inner.optimizer.param_groups)), key=lambda i: _base(inner, i))
    curve, raises = simulate(inner, group, left, per_step)
    return Schedule(
        steps=left,
        curve=curve,
        base=_base(inner, group),
        scheduler=type(inner).__name__,
        per_step=per_step,
        raises=raises,
        restarts=type(inner).__name__ in RESTARTING,
        resumed=inner.last_epoch > 0,
    )


def _base(scheduler: Any, group: int) -> float:
    settings = scheduler.optimizer.param_groups[group]
    return float(settings.get("initial_lr", settings["lr"]))


Curve = tuple[tuple[int, float], ...]


def simulate(scheduler: Any, group: int, steps: int, per_step: int) -> tuple[Curve, str | None]:
    """(step, learning rate) at some POINTS of the run's steps, and what ended it too early.

    `scheduler` is left alone.
    """
    try:
        copied = _copy(scheduler)
    except Exception as error:
        raise Unavailable(f"the scheduler can't be copied ({raised(error)})") from error
    stride = max(1, -(-steps // (POINTS - FIRST)))
    # The first steps one by one: a schedule that was made for a few steps goes up and down among them.
    wanted = sorted({*range(min(steps, FIRST)), *range(0, steps, stride), steps - 1})
    start = scheduler.last_epoch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rate_at = _closed_form(copied, group)
            if rate_at is not None:
                return tuple((step, rate_at(start + step * per_step)) for step in wanted), None
            if steps * per_step > MOST_STEPS:
                raise Unavailable(f"the schedule of a {type(scheduler).__name__} is too long to be simulated")
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"the schedule can't be simulated ({raised(error)})") from error
        return _stepped(copied, group, wanted, per_step)


def _stepped(scheduler: Any, group: int, wanted: list[int], per_step: int) -> tuple[Curve, str | None]:
    settings = scheduler.optimizer.param_groups[group]
    found: list[tuple[int, float]] = []
    done = 0
    for step in wanted:
        while done < step * per_step:
            rate = float(settings["lr"])
            try:
                scheduler.step()
            except Exception as error:  # such as a OneCycleLR that is stepped past its end
                return (*found, (done // per_step, rate)), raised(error)
            done += 1
        found.append((step, float(settings["lr"])))
    return tuple(found), None


def _copy(scheduler: Any) -> Any:
    """The scheduler over an optimizer of the same groups that holds one number for each."""
    real = scheduler.optimizer
    groups = [
        {
            **{key: copy.deepcopy(value) for key, value in group.items() if key != "params"},
            "params": [torch.nn.Parameter(torch.zeros(1))],
        }
        for group in real.param_groups
    ]
    stand_in = torch.optim.SGD(groups, lr=0.0)
    # Functions may be methods of something large: they are shared, and the real optimizer is replaced.
    memo = {id(real): stand_in}
    memo.update((id(function), function) for function in getattr(scheduler, "lr_lambdas", ()))
    return copy.deepcopy(scheduler, memo)


def _closed_form(scheduler: Any, group: int) -> Callable[[int], float] | None:
    """The rate at any step, for schedules that are functions of the step; None for the others."""
    if type(scheduler).__name__ != "LambdaLR":
        return None
    base, function = scheduler.base_lrs[group], scheduler.lr_lambdas[group]
    return lambda step: float(base) * float(function(step))
