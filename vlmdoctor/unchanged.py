"""Running a model and leaving it bit for bit as it was."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from vlmdoctor.hidden import hidden_parameters
from vlmdoctor.kept import Kept

# Weights are only written to by a forward pass in rare layouts (an embedding with max_norm). Up to this
# many bytes all of them are kept aside; in larger models only those known to do it.
KEPT_BYTES = 256 << 20

# Exactly these types: subclasses may refuse to be emptied and filled again.
_CONTAINERS = (list, dict, set, OrderedDict, defaultdict)


@contextmanager
def unchanged(model: nn.Module, *, learns: bool = False) -> Iterator[None]:
    """Whatever happens to `model` and the random states inside is undone afterwards, also after an exception.

    Undone are parameters, buffers and other tensors held by modules, gradients, training modes, hooks,
    plain attributes and containers of modules, the random states (Python, numpy, torch, CUDA), the
    default dtype and whether gradients are enabled. Gradients are set aside, so that inside every
    `.grad` is None; hooks that run after a gradient was accumulated (an optimizer may sit in one) do not run.

    Args:
        learns: Optimizer steps are taken inside: all weights are kept, however many, and out of the way.
    """
    restore_random = _random_states()
    restore_modules = [_module_state(module) for module in model.modules()]
    # Also those that no module has registered: backward writes their gradients all the same.
    parameters = _unique([*model.parameters(), *hidden_parameters(model).values()])
    kept = _tensors_to_keep(model, parameters, every=learns)
    tensors = Kept(kept, aside=learns, owner=model)
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in parameters]
    # They are held by autograd too, so that emptying the dictionary is what silences them.
    hooks = [getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in parameters]
    accumulate_hooks = [(registered, registered.copy()) for registered in hooks if registered]
    grad_enabled, default_dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    for parameter, _, _ in gradients:
        parameter.grad = None
    for registered, _ in accumulate_hooks:
        registered.clear()
    try:
        with _same_versions(kept):
            yield
    finally:
        with _uninterrupted():
            torch.set_grad_enabled(grad_enabled)
            torch.set_default_dtype(default_dtype)
            for restore in restore_modules:
                restore()
            for parameter in parameters:
                parameter.grad = None  # their memory is free for what comes back
            try:
                tensors.restore()
            finally:  # what could not be put back costs nothing else
                for parameter, gradient, requires_grad in gradients:
                    if parameter.requires_grad != requires_grad:
                        parameter.requires_grad_(requires_grad)
                    parameter.grad = gradient
                for registered, kept_hooks in accumulate_hooks:
                    registered.clear()
                    registered.update(kept_hooks)
                restore_random()


@contextmanager
def _same_versions(tensors: list[torch.Tensor]) -> Iterator[None]:
    """A graph that is still needed refuses tensors that were written to, although they are put back."""
    with ExitStack() as stack:
        for tensor in tensors:
            if not tensor.is_inference():
                stack.enter_context(torch.autograd._unsafe_preserve_version_counter(tensor))
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until what is inside is done: weights that are half put back are lost."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    caught: list[Any] = []
    signal.signal(signal.SIGINT, lambda *told: caught.append(told))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            handler(*caught[0])


@contextmanager
def same_random_states() -> Iterator[None]:
    """The random states are afterwards what they were before, whatever is drawn inside."""
    restore = _random_states()
    try:
        yield
    finally:
        restore()


def copy_of(batch: Any) -> Any:
    """`batch` with its own tensors and containers, so that a model that edits its inputs edits a copy."""
    if isinstance(batch, torch.Tensor):
        return batch.detach().clone().requires_grad_(batch.requires_grad)
    if isinstance(batch, Mapping):
        return {key: copy_of(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(copy_of(value) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(copy_of(value) for value in batch)
    return batch


def _random_states() -> Any:
    python = random.getstate()
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    # Where numpy was never imported nobody can have drawn from it.
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    numpy = numpy_random.get_state() if numpy_random is not None else None

    def restore() -> None:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if numpy is not None:
            numpy_random.set_state(numpy)

    return restore


def _module_state(module: nn.Module) -> Any:
    attributes = dict(vars(module))
    # Hooks live in dictionaries among the attributes, so that they are covered too.
    containers = [(value, value.copy()) for value in attributes.values() if type(value) in _CONTAINERS]

    def restore() -> None:
        current = vars(module)
        for name in [name for name in current if name not in attributes]:
            del current[name]
        for name, value in attributes.items():
            if current.get(name, module) is not value:
                current[name] = value
        for value, kept in containers:
            if isinstance(value, list):
                value[:] = kept
            else:
                value.clear()
                value.update(kept)

    return restore


def _tensors_to_keep(model: nn.Module, parameters: list[nn.Parameter], *, every: bool) -> list[torch.Tensor]:
    keep: list[torch.Tensor] = list(model.buffers())
    for module in model.modules():
        keep += [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
        if getattr(module, "max_norm", None) is not None and isinstance(
            getattr(module, "weight", None), nn.Parameter
        ):
            keep.append(module.weight)
    if every or sum(parameter.nbytes for parameter in parameters) <= KEPT_BYTES:
        keep += parameters
    return [tensor for tensor in _unique(keep) if not tensor.is_meta and tensor.layout is torch.strided]


def _unique(tensors: Any) -> list[Any]:
    return list({id(tensor): tensor for tensor in tensors}.values())
