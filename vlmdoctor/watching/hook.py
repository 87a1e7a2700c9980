"""Hooks that can be put on any module without being noticed."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import optimizer as torch_optimizers

from vlmdoctor.sandbox import examining
from vlmdoctor.watching.guarded import Undo

_FORWARD = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
_MODE = torch._C._TorchDispatchModeKey
_at_work: set[object] = set()  # one for each module with hooks
_lock = threading.Lock()


def is_transformed() -> bool:
    """Whether what runs now is recorded or transformed, and its values are none that could be read.

    By torch.compile, torch.export, torch.jit.trace, torch.fx, vmap and other transforms, under fake tensors,
    or into a CUDA graph.
    """
    return (
        torch.compiler.is_compiling()  # first: all that follows is left out of a compiled graph
        or torch._C._get_tracing_state() is not None
        or torch.fx._symbolic_trace._is_fx_tracing_flag
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_dispatch_mode(_MODE.FAKE) is not None
        or torch._C._get_dispatch_mode(_MODE.PROXY) is not None
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


class Hook:
    """Calls `function` and returns None, so that nothing it is hooked to is changed.

    A module is copied and pickled together with its hooks: a copy of this one does nothing, so that an
    averaged copy of a watched model is not watched and a saved model does not carry the watcher along.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._level = examining.level()

    def __call__(self, *args: Any) -> None:
        # Whatever follows that is traced must leave nothing behind in the graph.
        if not is_transformed() and examining.level() == self._level:
            self._function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> tuple[Any, ...]:
        # Something of the standard library that takes anything and returns None, so that the model can
        # be loaded where this package isn't installed.
        return getattr, (contextlib.nullcontext(), "__exit__")


def hook_forward(module: nn.Module, before: Hook, after: Hook, undo: Undo) -> None:
    """Has `before` and `after` called around the forward passes of `module`."""
    itself, token = weakref.ref(module), object()
    modules: Any = nn.Module

    def unhook() -> None:
        with _lock:
            _at_work.discard(token)
            if not _at_work and vars(nn.Module).get("__prepare_scriptable__") is _unhooked:
                del modules.__prepare_scriptable__
        _drop(itself(), (before, after))

    undo.push(unhook)
    with _lock:
        _at_work.add(token)
        if not hasattr(nn.Module, "__prepare_scriptable__"):
            modules.__prepare_scriptable__ = _unhooked
    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after, with_kwargs=True)


def hook_optimizers(before: Callable[..., None], after: Callable[..., None], undo: Undo) -> None:
    """Has `before` and `after` called around the steps of every optimizer."""
    pre, post = torch_optimizers._global_optimizer_pre_hooks, torch_optimizers._global_optimizer_post_hooks

    def unhook() -> None:
        for registered, hook in ((pre, before), (post, after)):
            for key in [key for key, value in list(registered.items()) if value is hook]:
                registered.pop(key, None)

    undo.push(unhook)
    torch_optimizers.register_optimizer_step_pre_hook(before)
    torch_optimizers.register_optimizer_step_post_hook(after)


def _drop(module: nn.Module | None, hooks: tuple[Hook, ...]) -> None:
    """Takes the hooks off by themselves: a handle may never have come back from registering them."""
    if module is None:
        return
    keys = [
        key
        for name in ("_forward_hooks", "_forward_pre_hooks")
        for key, value in list(vars(module)[name].items())
        if any(value is hook for hook in hooks)
    ]
    for name in reversed(_FORWARD):
        for key in keys:
            vars(module)[name].pop(key, None)


def _unhooked(module: nn.Module) -> nn.Module:
    """What torch.jit.script shall compile: the same parts without the hooks, which are no TorchScript."""
    if not any(_ours(one) for one in module.modules()):
        return module
    twin = object.__new__(type(module))
    twin.__dict__.update(vars(module))
    twin.__dict__["_modules"] = vars(module)["_modules"].copy()
    ours = _ours(module)
    for name in _FORWARD:
        kept = vars(module)[name].items()
        twin.__dict__[name] = OrderedDict((key, value) for key, value in kept if key not in ours)
    return twin


def _ours(module: nn.Module) -> set[int]:
    """The keys of the hooks of watchers."""
    return {
        key
        for name in ("_forward_hooks", "_forward_pre_hooks")
        for key, hook in vars(module)[name].items()
        if isinstance(hook, Hook)
    }
