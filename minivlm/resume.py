"""The training state of a checkpoint: read without running code in it, and refused where it does not fit."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minivlm.checkpoint import STATE, BrokenCheckpoint, step_of
from minivlm.errors import reason_of
from minivlm.evaluate import set_random_state
from minivlm.train_config import TrainConfig

if TYPE_CHECKING:
    from minivlm.distributed import World
    from minivlm.run import Run

_KINDS: dict[str, Any] = {
    "step": int,
    "tokens": int,
    "seconds": int | float,
    "evaluation": dict,
    "config": dict,
    "optimizer": dict,
    "scaler": dict | None,
    "random": list,
    "model": dict | None,
}

_SET = ("betas", "eps", "weight_decay", "peak_lr")


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The training state of a verified checkpoint; its tensors are on the CPU, and no code in it is run.

    Raises:
        BrokenCheckpoint: It can't be read, or is no training state.
    """
    try:
        state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and zip files raise what they like
        raise BrokenCheckpoint(f"{STATE} can't be read: {type(error).__name__}") from error
    if not isinstance(state, dict):
        raise BrokenCheckpoint(f"{STATE} holds no training state")
    for name, kind in _KINDS.items():
        if name not in state or not isinstance(state[name], kind) or isinstance(state[name], bool):
            raise BrokenCheckpoint(f"{STATE} has no usable '{name}'")
    for name in ("step", "tokens", "seconds"):
        if not 0 <= state[name] < math.inf:
            raise BrokenCheckpoint(f"{STATE} has {name} {state[name]}")
    if checkpoint.name.startswith("step-") and state["step"] != step_of(checkpoint):
        raise BrokenCheckpoint(f"{STATE} is that of step {state['step']:,}")
    _check_settings(state["config"])
    return state


def restore(run: Run, state: dict[str, Any], world: World) -> None:
    """Puts everything back as it was when the checkpoint was written.

    Raises:
        BrokenCheckpoint: The state is that of another model or optimizer. The run must not be used then.
    """
    fresh = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in run.optimizer.param_groups
    ]
    try:
        run.optimizer.load_state_dict(state["optimizer"])
        if run.scaler is not None and state["scaler"] is not None:
            run.scaler.load_state_dict(state["scaler"])
        states = state["random"]
        set_random_state(states[world.rank] if world.rank < len(states) else states[0])
    except Exception as error:  # a state of other keys and types raises whatever comes of it
        raise BrokenCheckpoint(f"{STATE} does not fit this run: {_said(error)}") from error
    _check_optimizer(run.optimizer, fresh)
    run.step = run.first_step = state["step"]
    run.tokens, run.seconds, run.evaluation = state["tokens"], state["seconds"], state["evaluation"]


def load_model_state(model: torch.nn.Module, values: Mapping[str, Any]) -> None:
    """Loads what the model's own files lack.

    Raises:
        BrokenCheckpoint: It is that of another model.
    """
    try:
        model.load_state_dict(values)
    except Exception as error:
        raise BrokenCheckpoint(f"{STATE} does not fit the model: {_said(error)}") from error


def _check_settings(saved: Mapping[str, Any]) -> None:
    """Whether the saved settings are some that a run can have had."""
    hints = typing.get_type_hints(TrainConfig)
    for f in dataclasses.fields(TrainConfig):
        if f.name in saved and not _fits(saved[f.name], hints[f.name]):
            raise BrokenCheckpoint(f"{STATE} has the setting {f.name} = {str(saved[f.name])[:40]!r}")
    try:
        known = {f.name: saved[f.name] for f in dataclasses.fields(TrainConfig) if f.name in saved}
        TrainConfig(**known).resolved()
    except Exception as error:
        raise BrokenCheckpoint(f"{STATE} has settings that no run has: {_said(error)}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; an int is a float too, and no bool."""
    kinds = (
        typing.get_args(hint) if typing.get_origin(hint) is not tuple and typing.get_args(hint) else (hint,)
    )
    for kind in kinds:
        plain = typing.get_origin(kind) or kind
        if plain is tuple and isinstance(value, list | tuple):
            return all(isinstance(part, str) for part in value)
        if isinstance(value, bool) is (plain is bool) and isinstance(
            value, int | float if plain is float else plain
        ):
            return True
    return False


def _check_optimizer(optimizer: torch.optim.Optimizer, fresh: list[dict[str, Any]]) -> None:
    """Whether every parameter has moments of its own shape, and every group the settings of this run.

    `load_state_dict` compares the numbers of parameters only; the rest would show in a later step, or never.
    """
    for group, wanted in zip(optimizer.param_groups, fresh, strict=True):
        for name, value in wanted.items():
            # What another version of torch added may be missing, but nothing that this run sets.
            if group.get(name, value) != value or (name not in group and name in _SET):
                raise BrokenCheckpoint(f"{STATE} has an optimizer of other settings ({name})")
    parameters = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for parameter, moments in optimizer.state.items():
        if id(parameter) not in parameters or not _are_moments(moments, parameter.shape):
            raise BrokenCheckpoint(f"{STATE} is the state of another model's optimizer")


def _are_moments(moments: Any, shape: torch.Size) -> bool:
    if not isinstance(moments, dict):
        return False
    values = [moments.get("step"), moments.get("exp_avg"), moments.get("exp_avg_sq")]
    if not all(isinstance(value, torch.Tensor) and value.is_floating_point() for value in values):
        return False
    return [value.shape for value in values] == [torch.Size(()), shape, shape]


def _said(error: Exception) -> str:
    return reason_of(error)[:120]
