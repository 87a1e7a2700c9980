"""A LightningModule outside of a run: `self.log` does nothing, and `self.trainer` answers what it can."""

from __future__ import annotations

import copy
from typing import Any

from vlmdoctor.errors import Unavailable

NOTHING = ("log", "log_dict", "print", "log_grad_norm", "toggle_optimizer", "untoggle_optimizer")


class NotInARun(Unavailable, AttributeError):
    """A module asked its trainer for what there is in a run of Lightning's only."""


class NoTrainer:
    """Stands for the trainer before a run has begun."""

    accumulate_grad_batches = world_size = num_nodes = num_devices = max_epochs = 1
    current_epoch = global_step = global_rank = local_rank = node_rank = 0
    estimated_stepping_batches = num_training_batches = 1000
    max_steps = -1
    is_global_zero = training = True
    sanity_checking = validating = testing = predicting = False
    datamodule = train_dataloader = val_dataloaders = logger = None
    precision = "32-true"

    def __init__(self) -> None:
        self.callbacks: list[Any] = []
        self.loggers: list[Any] = []
        self.callback_metrics: dict[str, Any] = {}
        self.logged_metrics: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        raise NotInARun(f"the module reads trainer.{name}, which there is in a run of Lightning's only")


class _Silent:
    """A logger that takes everything and keeps nothing."""

    def __getattr__(self, name: str) -> _Silent:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **keywords: Any) -> _Silent:
        return self


def stand_in_for(
    module: Any, replaced: dict[str, Any] | None = None, *, optimizer: Any = None, scheduler: Any = None
) -> Any:
    """A module that shares its parts with `module`, but for those `replaced`; what it is set stays its own.

    Parts without parameters, such as metrics, are copied, since a step may count in them.
    """
    kind = type(module)
    stand_in: Any = object.__new__(type(kind.__name__, (kind,), _overridden(module, optimizer, scheduler)))
    own = vars(stand_in)
    for name, value in vars(module).items():
        own[name] = value.copy() if type(value) in (list, dict, set) else value
    replaced = replaced or {}
    own["_modules"] = {
        name: replaced[name] if name in replaced else _shared(child)
        for name, child in module._modules.items()
    }
    return stand_in


def _shared(child: Any) -> Any:
    """The part itself where it holds parameters, else a copy."""
    if child is None or next(child.parameters(), None) is not None:
        return child
    try:
        return copy.deepcopy(child)
    except Exception:
        return child


def _overridden(module: Any, optimizer: Any, scheduler: Any) -> dict[str, Any]:
    members: dict[str, Any] = {name: lambda self, *a, **k: None for name in NOTHING}
    members["optimizers"] = lambda self, *a, **k: optimizer
    members["lr_schedulers"] = lambda self, *a, **k: scheduler
    members["all_gather"] = lambda self, data, *a, **k: data
    members["logger"] = property(lambda self: _Silent())
    members["loggers"] = property(lambda self: [])
    trainer = vars(module).get("_trainer") or NoTrainer()
    members["trainer"] = property(lambda self: trainer)
    members["__module__"] = type(module).__module__
    members["__qualname__"] = type(module).__qualname__
    return members
