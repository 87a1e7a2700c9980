"""Calling the user's model with the user's batch, and finding the loss in what comes back."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from vlmdoctor.plain_text import text_of


def arguments_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called with `batch`: a mapping as keywords, a tuple or list as positions."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    return (batch,), {}


def misfit(model: nn.Module, batch: Any) -> str | None:
    """Why `model.forward` can't be called with `batch` at all, such as an unknown key; None where it can."""
    positional, keywords = arguments_of(batch)
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        if _takes_mapping_whole(signature, batch):
            return None
        return text_of(error)
    return None


def call(model: nn.Module, batch: Any) -> Any:
    """What the model returns for `batch`; a forward that takes the mapping whole gets it whole."""
    positional, keywords = arguments_of(batch)
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*positional, **keywords)
    except TypeError:
        if _takes_mapping_whole(signature, batch):
            return model(batch)
    return model(*positional, **keywords)


def _takes_mapping_whole(signature: inspect.Signature, batch: Any) -> bool:
    """Whether forward has one parameter for the whole mapping (and not one for a tensor, as a Linear has)."""
    if not isinstance(batch, Mapping):
        return False
    try:
        bound = signature.bind(batch)
    except TypeError:
        return False
    annotation = signature.parameters[next(iter(bound.arguments))].annotation
    return annotation not in (torch.Tensor, "Tensor", "torch.Tensor")


def seed(number: int) -> None:
    """Seeds what models draw from: Python's and torch's generators.

    Not `torch.manual_seed`: where CUDA was never used, that leaves a call behind for the day that it is.
    """
    random.seed(number)
    torch.default_generator.manual_seed(number)
    for backend in (torch.cuda, torch.xpu):
        if backend.is_initialized():
            backend.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def loss_in(output: Any) -> torch.Tensor | None:
    """The loss in a model's output as a scalar; see `loss_itself`."""
    loss = loss_itself(output)
    return None if loss is None else loss.reshape(())


def loss_itself(output: Any) -> torch.Tensor | None:
    """The loss in a model's output: a scalar, `.loss`, `["loss"]`, or the first or second of a tuple.

    It is the very tensor, of one number, whose graph the output holds.
    """
    if isinstance(output, Mapping):
        named = [value for key, value in output.items() if "loss" in str(key) and _is_scalar(value)]
        output = output["loss"] if "loss" in output else named[0] if len(named) == 1 else None
    elif isinstance(output, tuple | list) and output:
        # Further back a scalar is something else: CLIP's third is the scale of its logits.
        scalars = (value for value in output[:2] if _is_scalar(value))
        output = getattr(output, "loss", next(scalars, None))
    elif not isinstance(output, torch.Tensor):
        output = getattr(output, "loss", None)
    return output if _is_scalar(output) else None


def logits_in(output: Any) -> torch.Tensor | None:
    """The logits in a model's output: `.logits`, `["logits"]`, or the one tensor [B, T, V] that is in it."""
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif hasattr(output, "logits"):
        logits = output.logits
    else:
        parts = output if isinstance(output, tuple | list) else (output,)
        deep = [p for p in parts if isinstance(p, torch.Tensor) and p.ndim == 3 and p.is_floating_point()]
        logits = deep[0] if len(deep) == 1 else None
    return logits if isinstance(logits, torch.Tensor) else None


def run(
    model: nn.Module, batch: Any, loss_fn: Callable[[Any, Any], Any] | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """One forward pass: (loss, logits), each None where the model gives none."""
    if loss_fn is None:
        output = call(model, batch)
        return loss_in(output), logits_in(output)
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda module, given, output: outputs.append(output))
    try:
        loss = loss_in(loss_fn(model, batch))
    finally:
        handle.remove()
    return loss, logits_in(outputs[-1]) if outputs else None


def _is_scalar(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point()


def moved(batch: Any, device: torch.device) -> Any:
    """`batch` with its tensors on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device) for value in batch)
    return batch
