"""A LightningModule as a Subject: its `training_step` is the loss, `configure_optimizers` the optimizer.

Lightning itself is not imported: whatever is a module with these two methods is taken for one.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.subject import Subject
from vlmdoctor.targets.frameworks.first_batch import first_batch, on_device_of
from vlmdoctor.targets.frameworks.trainer_stub import stand_in_for
from vlmdoctor.targets.target import user_code_errors

HOOKS = ("training_step", "configure_optimizers")
WRAPPERS = ("_orig_mod", "_forward_module", "module")


def module_in(model: Any) -> Any:
    """The LightningModule that `model` is or wraps (torch.compile, DDP, Fabric); None where there is none."""
    from torch import nn

    while isinstance(model, nn.Module):
        if all(callable(getattr(type(model), name, None)) for name in HOOKS):
            return model
        # A wrapper has nothing of its own beside the module that it wraps.
        children = dict(model.named_children())
        name = next((name for name in WRAPPERS if list(children) == [name]), None)
        model = children.get(name) if name else None
    return None


def subject_of(module: Any, given: Subject, source: str) -> Subject:
    """`given` with what the LightningModule says of itself, where the user has said nothing.

    Where it keeps its whole model in one attribute, that is what is examined, under its own names.
    """
    name = type(module).__name__
    if given.loss_fn is None and getattr(module, "automatic_optimization", True) is False:
        raise UserError(
            f"{name} optimizes by hand (automatic_optimization is False), so that its training_step can't be "
            f"taken for the loss; give loss_fn(model, batch)."
        )
    if given.loss_fn is None and "optimizer_idx" in inspect.signature(module.training_step).parameters:
        raise UserError(
            f"training_step of {name} takes an optimizer_idx, so that it has several losses; "
            f"give loss_fn(model, batch)."
        )
    subject = dataclasses.replace(given)
    subject.model = module
    inner = None if given.loss_fn is not None else only_network(module)
    if given.optimizer is None:
        subject.optimizer, scheduler = _configured(module, name)
        subject.lr_scheduler = given.lr_scheduler or scheduler
    if given.loss_fn is None:
        subject.model = module if inner is None else getattr(module, inner)
        subject.loss_fn = _StepLoss(module, inner, subject.optimizer, subject.lr_scheduler)
    subject.batch = on_device_of(module, _batch(module, given.batch, name))
    return subject


class _StepLoss:
    """`loss_fn(model, batch)`: what `training_step` returns, on a stand-in with `model` in its place."""

    def __init__(self, module: Any, inner: str | None, optimizer: Any, scheduler: Any) -> None:
        self.module, self.inner = module, inner
        self.optimizer, self.scheduler = optimizer, scheduler
        self.takes = len(inspect.signature(module.training_step).parameters)

    def __call__(self, model: Any, batch: Any) -> Any:
        module = self.module if self.inner else _unwrapped(model, type(self.module))
        step = stand_in_for(
            module,
            {self.inner: model} if self.inner else {},
            optimizer=self.optimizer,
            scheduler=self.scheduler,
        ).training_step
        return step(*(batch, 0, 0)[: self.takes]) if self.takes else step()


def _unwrapped(model: Any, kind: type) -> Any:
    """The module of this class inside of whatever a probe has wrapped it in."""
    return next((part for part in model.modules() if isinstance(part, kind)), model)


def only_network(module: Any) -> str | None:
    """The attribute that holds all parameters and buffers and can be called; None where there is none."""
    from torch import nn

    children = {
        name: child for name, child in module.named_children() if next(child.parameters(), None) is not None
    }
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if own or len(children) != 1:
        return None
    name, child = next(iter(children.items()))
    return None if isinstance(child, nn.ModuleList | nn.ModuleDict) else name


def _configured(module: Any, name: str) -> tuple[Any, Any]:
    """(optimizer or several, scheduler) of `configure_optimizers`, in each form that Lightning takes."""
    from vlmdoctor.sandbox.restore import same_random_states

    with (
        same_random_states(),
        user_code_errors(f"configure_optimizers of {name}"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        made = stand_in_for(module).configure_optimizers()
    optimizers, schedulers = _taken_apart(made)
    strange = next((one for one in optimizers if not hasattr(one, "param_groups")), None)
    if strange is not None:
        raise UserError(
            f"configure_optimizers of {name} returned an object of type {type(strange).__name__} where "
            f"an optimizer is expected."
        )
    # A schedule by epochs is not known by steps. The rate that it began with is the optimizer's then.
    by_step = [one["scheduler"] for one in schedulers if one.get("interval", "epoch") == "step"]
    if not by_step:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group.get("initial_lr", group["lr"])
    return _one_or_all(optimizers), by_step[0] if by_step else None


def _taken_apart(made: Any) -> tuple[list[Any], list[Mapping[str, Any]]]:
    """The optimizers, and the schedulers as mappings with `scheduler` and perhaps `interval`."""
    if made is None:
        return [], []
    if isinstance(made, Mapping):
        scheduler = made.get("lr_scheduler")
        return [made.get("optimizer")], [] if scheduler is None else [_as_mapping(scheduler)]
    if isinstance(made, list | tuple):
        if len(made) == 2 and all(isinstance(part, list | tuple) for part in made):
            return list(made[0]), [_as_mapping(scheduler) for scheduler in made[1]]
        parts = [_taken_apart(part) for part in made]
        return [o for part, _ in parts for o in part], [s for _, part in parts for s in part]
    return [made], []


def _as_mapping(scheduler: Any) -> Mapping[str, Any]:
    return scheduler if isinstance(scheduler, Mapping) else {"scheduler": scheduler}


def _one_or_all(found: list[Any]) -> Any:
    return (found[0] if len(found) == 1 else found) if found else None


def _batch(module: Any, batch: Any, name: str) -> Any:
    """The user's batch, or the first of the data module that they gave, or of the module's own loader."""
    from vlmdoctor.sandbox.restore import same_random_states

    if batch is not None and not callable(getattr(batch, "train_dataloader", None)):
        return batch
    source = stand_in_for(module) if batch is None else batch
    name = name if batch is None else type(batch).__name__
    if not _is_users_own(source, "train_dataloader"):
        return None
    with same_random_states(), user_code_errors(f"train_dataloader of {name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if _is_users_own(source, "setup"):
            source.setup("fit")
        loader = source.train_dataloader()
    if loader is None:
        raise UserError(f"train_dataloader of {name} returned nothing (None).")
    return first_batch(loader, f"train_dataloader of {name}")


def _is_users_own(source: Any, name: str) -> bool:
    """Whether the method is defined by the user's class and not by Lightning's."""
    home = next((kind for kind in type(source).__mro__ if name in vars(kind)), None)
    return home is not None and home.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning")
