"""A few optimizer steps on a copy of the model, watched: does it learn at all, does everything move?"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import nn

from vlmdoctor import invoke
from vlmdoctor.copied import copied_together
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.subject import Subject, optimizers
from vlmdoctor.unchanged import copy_of, unchanged
from vlmdoctor.watching.held import innermost
from vlmdoctor.watching.watcher import Watcher

STEPS = 8


def trial_steps(subject: Subject, steps: int = STEPS) -> Steps:
    """Trains a copy of `subject.model` with a copy of its optimizer on `subject.batch`, again and again.

    Nothing of the subject is changed, nor are the random states. What the loop of the real run does
    (clearing gradients, clipping, its length) is not known here and not told.

    Raises:
        Unavailable: Something that is needed is missing or can't be copied, or a step fails.
    """
    if not isinstance(subject.model, nn.Module):
        raise Unavailable("no built model was given")
    for what in ("batch", "optimizer"):
        if getattr(subject, what) is None:
            raise Unavailable(f"no {what} was given")
    with unchanged(subject.model), torch.enable_grad(), warnings.catch_warnings():
        # What numpy and torch say about the numbers of a run that diverges is for the rules to tell.
        warnings.simplefilter("ignore")
        model, own, schedulers = copies(subject)
        model.train()
        if subject.loss_fn is not None and not runs(model, subject.loss_fn, subject.batch):
            raise Unavailable(
                "loss_fn does not run the model that it is given, so that no copy can be trained"
            )
        with Watcher(model, own, every=1, trainable=subject.trainable, on_error="raise") as watcher:
            try:
                for _ in range(steps):
                    watcher.log(loss=step(subject, model, own, schedulers))
            except Unavailable:
                raise
            except Exception as error:
                raise Unavailable(f"a training step fails ({type(error).__name__}: {error})") from error
        _, seen = watcher.evidence()
    return Steps(steps=seen.steps, tracks=seen.tracks, nonfinite=seen.nonfinite)


def runs(model: nn.Module, loss_fn: Any, batch: Any) -> bool:
    """Whether the loss is made with `model` at all: a loss_fn may hold on to the model that it knows."""
    called: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda m, _: called.append(m)) for m in model.modules()]
    try:
        with torch.no_grad():
            invoke.run(model, copy_of(batch), loss_fn)
    finally:
        for handle in handles:
            handle.remove()
    return bool(called)


def copies(subject: Subject) -> tuple[nn.Module, list[Any], list[Any]]:
    """The model with its optimizers and schedulers, copied together."""
    given = [innermost(optimizer) for optimizer in optimizers(subject.optimizer)]
    schedulers = optimizers(subject.lr_scheduler)
    try:
        # Copied together, so that the optimizer's copy holds the copied model's parameters, each as often
        # as the real one holds the real ones.
        return copied_together(subject.model, given, schedulers)
    except Exception as error:
        raise Unavailable(
            f"the model and its optimizer can't be copied for a trial ({type(error).__name__}: {error})"
        ) from error


def step(subject: Subject, model: nn.Module, own: list[Any], schedulers: list[Any]) -> float:
    """One training step on the subject's batch; the loss."""
    for optimizer in own:
        optimizer.zero_grad(set_to_none=True)
    loss, _ = invoke.run(model, copy_of(subject.batch), subject.loss_fn)
    if loss is None:
        raise Unavailable("the model gives no loss for this batch, and no loss_fn was given")
    loss.backward()
    for optimizer in own:
        optimizer.step()
    with warnings.catch_warnings():
        # A copied scheduler does not know that its optimizer has stepped.
        warnings.simplefilter("ignore", UserWarning)
        for scheduler in schedulers:
            wants_loss = "metrics" in inspect.signature(scheduler.step).parameters  # ReduceLROnPlateau
            scheduler.step(*([float(loss.detach())] if wants_loss else []))
    return float(loss.detach())  # of no module's output where a loss_fn makes it
