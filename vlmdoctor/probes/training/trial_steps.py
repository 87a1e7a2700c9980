"""A few optimizer steps that are undone again, watched: does it learn at all, does everything move?"""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.plain_text import raised
from vlmdoctor.sandbox import call
from vlmdoctor.sandbox.clone import clone_together
from vlmdoctor.sandbox.restore import copy_of, restoring
from vlmdoctor.subject import Subject, optimizers
from vlmdoctor.watching.optimizers import innermost
from vlmdoctor.watching.watcher import Watcher

STEPS = 8


def trial_steps(subject: Subject, steps: int = STEPS) -> Steps:
    """Trains `subject.model` with a copy of its optimizer on `subject.batch`, again and again, and undoes it.

    The model learns itself, and its weights are put back: a copy of it would take more memory than training
    takes. Nothing of the subject is changed in the end, nor are the random states. What the loop of the real
    run does (clearing gradients, clipping, its length) is not known here and not reported.

    Raises:
        Unavailable: Something that is needed is missing or can't be copied, or a step fails.
    """
    model = subject.model
    if not isinstance(model, nn.Module):
        raise Unavailable("no built model was given")
    for what in ("batch", "optimizer"):
        if getattr(subject, what) is None:
            raise Unavailable(f"no {what} was given")
    if any(parameter.device.type == "cpu" and parameter.is_shared() for parameter in model.parameters()):
        raise Unavailable("other processes share the weights, and would learn along")
    with restoring(subject, learns=True) as kept, torch.enable_grad(), warnings.catch_warnings():
        # What numpy and torch say about the numbers of a run that diverges is for the rules to tell.
        warnings.simplefilter("ignore")
        own, schedulers = _own_optimizers(subject, kept.reached())
        model.train()
        # What is seen is evidence, which the rules judge once all of it is there.
        watched = Watcher(model, own, every=1, trainable=subject.trainable, on_error="raise", judge=False)
        with watched as watcher:
            try:
                for _ in range(steps):
                    watcher.log(loss=step(subject, model, own, schedulers))
            except Unavailable:
                raise
            except Exception as error:
                raise Unavailable(f"a training step fails ({raised(error)})") from error
            finally:
                for optimizer in own:
                    optimizer.state.clear()  # memory that the weights' return may need
        _, seen = watcher.evidence()
    return Steps(steps=seen.steps, tracks=seen.tracks, nonfinite=seen.nonfinite)


def _own_optimizers(subject: Subject, reached: list[torch.Tensor]) -> tuple[list[Any], list[Any]]:
    """Copies of the optimizers and schedulers that hold the very parameters of the model and the loss."""
    held = (*subject.model.modules(), *reached)
    given = [innermost(optimizer) for optimizer in optimizers(subject.optimizer)]
    try:
        return copy.deepcopy((given, optimizers(subject.lr_scheduler)), {id(each): each for each in held})
    except Exception as error:
        raise Unavailable(f"the optimizer can't be copied for a trial ({raised(error)})") from error


def copies(subject: Subject) -> tuple[nn.Module, list[Any], list[Any]]:
    """The model with its optimizers and schedulers, copied together."""
    given = [innermost(optimizer) for optimizer in optimizers(subject.optimizer)]
    schedulers = optimizers(subject.lr_scheduler)
    try:
        # Copied together, so that the optimizer's copy holds the copied model's parameters, each as often
        # as the real one holds the real ones.
        return clone_together(subject.model, given, schedulers)
    except Exception as error:
        raise Unavailable(
            f"the model and its optimizer can't be copied for a trial ({raised(error)})"
        ) from error


def step(subject: Subject, model: nn.Module, own: list[Any], schedulers: list[Any]) -> float:
    """One training step on the subject's batch; the loss."""
    for optimizer in own:
        optimizer.zero_grad(set_to_none=True)
    loss, _ = call.run(model, copy_of(subject.batch), subject.loss_fn)
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
