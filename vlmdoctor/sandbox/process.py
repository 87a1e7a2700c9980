"""What belongs to the whole process: random states, settings, warnings, hooks, the environment."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _pop_mode

from vlmdoctor.sandbox.holders import DictHolder

Undo = Callable[[], Any]


def random_states() -> list[Undo]:
    """What sets the random states of Python, torch, CUDA and numpy to what they are now."""
    undo: list[Undo] = [partial(random.setstate, random.getstate())]
    undo.append(partial(torch.set_rng_state, torch.get_rng_state()))
    if torch.cuda.is_initialized():
        undo.append(partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    # Where numpy was never imported nobody can have drawn from it.
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    if numpy_random is not None:
        undo.append(partial(numpy_random.set_state, numpy_random.get_state()))
    return undo


def settings() -> list[Undo]:
    """What sets every other setting of the process that a pass may change."""
    return [
        *_of_torch(),
        _modes(),
        _stance(),
        _workers(),
        *_hooks(),
        *_of_numpy(),
        _warnings(),
        _environment(),
        _folder(),
    ]


def _of_torch() -> list[Undo]:
    pairs: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    ]
    undo = [_setting(read, write) for read, write in pairs]
    for device in ("cpu", "cuda"):
        undo.append(
            _setting(partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device))
        )
        undo.append(
            _setting(partial(torch.get_autocast_dtype, device), partial(torch.set_autocast_dtype, device))
        )
    for name in ("benchmark", "deterministic", "enabled"):
        backend = torch.backends.cudnn
        undo.append(_setting(partial(getattr, backend, name), partial(setattr, backend, name)))
    return undo


def _setting(read: Callable[[], Any], write: Callable[[Any], Any]) -> Undo:
    kept = read()

    def restore() -> None:
        if read() != kept:
            write(kept)

    return restore


def _modes() -> Undo:
    """Contexts that an interrupted probe has entered and not left stay on torch's stacks otherwise."""
    functions, dispatched = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()

    def restore() -> None:
        while torch._C._len_torch_function_stack() > functions:
            torch._C._pop_torch_function_stack()
        while torch._C._len_torch_dispatch_stack() > dispatched:
            _pop_mode()

    return restore


def _stance() -> Undo:
    """How torch.compile takes the calls of what it has compiled."""
    compiler: Any = sys.modules.get("torch._dynamo.eval_frame")
    kept = getattr(compiler, "_stance", None)

    def restore() -> None:
        if kept is not None and compiler._stance is not kept:
            compiler._set_stance(kept)

    return restore


def _workers() -> Undo:
    """DataLoaders set a handler for the end of their workers, once for the whole process."""
    watched: Any = sys.modules.get("torch.utils.data._utils.signal_handling")
    if watched is None or watched._SIGCHLD_handler_set or not hasattr(signal, "SIGCHLD"):
        return lambda: None
    kept = signal.getsignal(signal.SIGCHLD)

    def restore() -> None:
        if watched._SIGCHLD_handler_set and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, kept)
            watched._SIGCHLD_handler_set = False

    return restore


def _hooks() -> list[Undo]:
    """The hooks that are called for every module and every optimizer."""
    from torch.nn.modules import module
    from torch.optim import optimizer

    found = [
        value
        for home in (module, optimizer)
        for name, value in vars(home).items()
        if name.startswith("_global_") and isinstance(value, dict)
    ]
    return [DictHolder(value).restore for value in found]


def _of_numpy() -> list[Undo]:
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "geterr"):
        return []
    kept = numpy.geterr()

    def restore() -> None:
        if numpy.geterr() != kept:
            numpy.seterr(**kept)

    return [restore]


def _warnings() -> Undo:
    filters, content = warnings.filters, list(warnings.filters)
    show, showing = warnings.showwarning, warnings._showwarnmsg_impl  # type: ignore[attr-defined]

    def restore() -> None:
        if warnings.filters is not filters or list(filters) != content:
            filters[:] = content  # type: ignore[index]
            warnings.filters = filters
            warnings._filters_mutated()  # type: ignore[attr-defined]
        warnings.showwarning = show
        warnings._showwarnmsg_impl = showing  # type: ignore[attr-defined]

    return restore


def _environment() -> Undo:
    kept = dict(os.environ)

    def restore() -> None:
        if os.environ != kept:
            for name in [name for name in os.environ if name not in kept]:
                del os.environ[name]
            for name, value in kept.items():
                if os.environ.get(name) != value:
                    os.environ[name] = value

    return restore


def _folder() -> Undo:
    try:
        kept = Path.cwd()
    except OSError:  # it was removed
        return lambda: None

    def restore() -> None:
        if Path.cwd() != kept:
            os.chdir(kept)

    return restore
