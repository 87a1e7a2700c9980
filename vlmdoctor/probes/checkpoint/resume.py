"""Whether a run that is saved and loaded goes on as if it had not been: tried on copies."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.resume import Resume
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.plain_text import raised, text_of
from vlmdoctor.probes.training.trial_steps import copies, step
from vlmdoctor.sandbox import call
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.subject import Subject

STEPS_BEFORE = 2
MOST_BYTES = 64 << 20  # of weights: several copies of model and optimizer are held
SAME = 1e-5  # relative


def probe(subject: Subject, gather: Callable[[type], Any]) -> Resume:
    """Takes two steps on a copy, loads its state dicts into a second one, and takes the next step in both."""

    if subject.optimizer is None:
        raise Unavailable("no optimizer was given")
    if gather(Backward).failure is not None:
        raise Unavailable("the backward pass raises")
    if sum(parameter.nbytes for parameter in subject.model.parameters()) > MOST_BYTES:
        raise Unavailable("the model is too large to be copied several times")
    # Each copy of a compiled model would be compiled anew.
    plain = dataclasses.replace(subject, model=getattr(subject.model, "_orig_mod", subject.model))
    with restoring(plain), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of schedulers that do not know that their copied optimizer stepped
        return _tried(plain)


Parts = tuple[Any, list[Any], list[Any]]


def _tried(subject: Subject) -> Resume:
    going = _trained(subject, STEPS_BEFORE)
    loaded: Parts = copies(subject)
    try:
        _load(loaded, _states(going))
    except Exception as error:
        told = text_of(error, 200).partition("\n")[0]
        return Resume(parameters=_learning(going), raised=f"{type(error).__name__}: {told}")
    unsaved = _unsaved(going[0], loaded[0])
    states = [sum(len(optimizer.state) for optimizer in parts[1]) for parts in (going, loaded)]
    rates = [parts[1][0].param_groups[0].get("lr") for parts in (going, loaded)]  # Adafactor's may be None
    before = {name: p.detach().clone() for name, p in going[0].named_parameters() if p.requires_grad}
    for parts in (going, loaded):
        _step(subject, parts, STEPS_BEFORE)
    after, resumed = (dict(parts[0].named_parameters()) for parts in (going, loaded))
    apart = {name: _apart(after[name], resumed[name], before[name]) for name in before}
    differing = tuple(canonical_name(name) for name, distance in apart.items() if distance > SAME)
    if differing:
        # Only then does it matter whether the very same steps give the same weights at all.
        repeated = dict(_trained(subject, STEPS_BEFORE + 1)[0].named_parameters())
        if any(_apart(after[name], repeated[name], before[name]) > SAME for name in before):
            raise Unavailable("the same step gives different weights each time")
    return Resume(
        parameters=len(before),
        differing=differing,
        largest=max(apart.values(), default=0.0),
        lr=None if rates[0] is None else float(rates[0]),
        lr_loaded=None if rates[1] is None else float(rates[1]),
        unsaved=unsaved,
        optimizer_state=states[0],
        optimizer_state_loaded=states[1],
    )


def _trained(subject: Subject, steps: int) -> Parts:
    """A copy that has taken its first steps, each from its own seed."""
    parts: Parts = copies(subject)
    for number in range(steps):
        _step(subject, parts, number)
    return parts


def _step(subject: Subject, parts: Parts, seed: int) -> None:
    call.seed(seed)  # dropout is the same in all copies
    model, optimizers, schedulers = parts
    model.train()
    try:
        step(subject, model, optimizers, schedulers)
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"a training step fails ({raised(error)})") from error


def _states(parts: Parts) -> Any:
    model, optimizers, schedulers = parts
    return copy.deepcopy(
        (
            model.state_dict(),
            [optimizer.state_dict() for optimizer in optimizers],
            [scheduler.state_dict() for scheduler in schedulers],
        )
    )


def _load(parts: Parts, states: Any) -> None:
    model, optimizers, schedulers = parts
    model.load_state_dict(states[0])
    for optimizer, state in zip(optimizers, states[1], strict=True):
        optimizer.load_state_dict(state)
    for scheduler, state in zip(schedulers, states[2], strict=True):
        scheduler.load_state_dict(state)


def _learning(parts: Parts) -> int:
    return sum(parameter.requires_grad for parameter in parts[0].parameters())


def _apart(one: Any, other: Any, before: Any) -> float:
    """How far two results of a step are apart, relative to the step."""
    step = float((one.detach() - before).float().norm())
    apart = float((one.detach() - other.detach()).float().norm())
    return apart / max(step, 1e-6 * float(before.float().norm()), 1e-30)


def _unsaved(going: Any, loaded: Any) -> tuple[str, ...]:
    """Tensors that modules hold beside their state dict, and that differ between the two."""
    saved = set(going.state_dict())
    found = []
    others = dict(loaded.named_modules())
    for module_name, module in going.named_modules():
        if module_name not in others:
            continue  # BigBird exchanges its attention for short texts
        held = {**vars(module), **module._buffers}
        theirs = {**vars(others[module_name]), **others[module_name]._buffers}
        for name, value in held.items():
            full = f"{module_name}.{name}" if module_name else name
            other = theirs.get(name)
            if full in saved or not isinstance(value, torch.Tensor) or not isinstance(other, torch.Tensor):
                continue
            if value.shape != other.shape or not torch.equal(value, other):
                found.append(full)
    return tuple(found)
