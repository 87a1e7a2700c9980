"""A fingerprint of everything that a Subject reaches, and of the process: equal before and after a check.

It shares no code with `vlmdoctor.sandbox`, so that the two have no blind spot in common.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import itertools
import multiprocessing
import os
import random
import signal
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ATOMS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, range)
SKIPPED = (
    "logging",
    "threading",
    "importlib",
    "typing",
    "weakref",
    "multiprocessing",
    "_thread",
    "tokenizers",
)
FIELDS = ("model", "batch", "loss_fn", "optimizer", "lr_scheduler", "train_dataset", "data_collator")
SHOWN = 60  # characters of a value


def fingerprint(subject: Any) -> dict[str, str]:
    """What is there, by where it is; two of them differ exactly where something was changed."""
    seen: dict[int, str] = {}
    found: dict[str, str] = {}
    kept: list[Any] = []  # an id is an object's only as long as it lives
    for field in FIELDS:
        for path, text in _walk(getattr(subject, field, None), field, seen, kept):
            found[path] = text
    found.update(_process())
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What differs, in words."""
    lines = []
    for path in [*before, *(p for p in after if p not in before)]:
        old, new = before.get(path, "(absent)"), after.get(path, "(absent)")
        if old != new:
            lines.append(f"{path}: {old[:SHOWN]} -> {new[:SHOWN]}")
    return lines


def _walk(value: Any, path: str, seen: dict[int, str], kept: list[Any]) -> Iterator[tuple[str, str]]:
    waiting = collections.deque([(value, path)])
    while waiting:
        one, path = waiting.popleft()
        if isinstance(one, ATOMS) and type(one) in ATOMS:
            yield path, repr(one)
            continue
        if id(one) in seen:
            yield path, f"same as {seen[id(one)]}"
            continue
        seen[id(one)] = path
        kept.append(one)
        yield path, f"{type(one).__name__} at {id(one):x}"
        if isinstance(one, types.ModuleType) or type(one).__module__.partition(".")[0] in SKIPPED:
            continue
        for text in _own(one):
            yield f"{path}<{text[0]}>", text[1]
        waiting += [(part, f"{path}{name}") for name, part in _parts(one)]


def _own(one: Any) -> Iterator[tuple[str, str]]:
    """What an object holds itself, beside its parts."""
    if isinstance(one, torch.Tensor):
        yield "values", _digest(one)
        yield "form", f"{tuple(one.shape)} {one.dtype} {one.requires_grad} {one.is_leaf}"
        if not one.is_inference():
            yield "version", str(one._version)
        if one.is_leaf:
            gradient = one.grad
            yield "grad", "None" if gradient is None else f"{id(gradient):x} {_digest(gradient)}"
        hooks = getattr(one, "_post_accumulate_grad_hooks", None)
        yield "hooks", f"{len(one._backward_hooks or ())} {len(hooks or ())}"
    elif isinstance(one, np.ndarray):
        yield "values", hashlib.sha1(one.tobytes()).hexdigest() if one.dtype != object else str(one.shape)
    elif isinstance(one, torch.Generator):
        yield "state", hashlib.sha1(one.get_state().numpy().tobytes()).hexdigest()
    elif isinstance(one, np.random.Generator):
        yield "state", str(one.bit_generator.state)
    elif isinstance(one, np.random.RandomState):
        yield "state", _hash(one.get_state())
    elif isinstance(one, random.Random):
        yield "state", _hash(one.getstate())
    elif isinstance(one, types.GeneratorType):
        frame = one.gi_frame
        yield (
            "place",
            "ended" if frame is None else f"{frame.f_lasti} {sorted(map(str, _plain(frame.f_locals)))}",
        )
    elif isinstance(one, itertools.count):
        yield "place", repr(one)
    elif isinstance(one, enumerate):
        yield "place", str(one.__reduce__()[1][1])
    elif isinstance(one, itertools.cycle):
        _, (inner,), (saved, _) = one.__reduce__()
        yield "place", f"{type(inner).__length_hint__(inner)} of {len(saved)}"
    elif isinstance(one, io.IOBase):
        yield "place", _place(one)
    elif hasattr(type(one), "__length_hint__"):
        yield "place", str(type(one).__length_hint__(one))
    elif isinstance(one, bytearray):
        yield "bytes", bytes(one).hex()[:400]
    elif type(one).__name__ == "array":
        yield "bytes", one.tobytes().hex()[:400]
    elif isinstance(one, list | tuple | dict | set | frozenset | collections.deque):
        yield "length", str(len(one))
        if isinstance(one, collections.defaultdict):
            yield "default", repr(one.default_factory)


def _parts(one: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(one, dict):
        for number, (key, value) in enumerate(list(dict.items(one))):
            # The place among the others counts: the order of modules and groups has a meaning.
            yield f"[{number}:{key if type(key) in ATOMS else type(key).__name__!r}]", value
    elif isinstance(one, list | tuple | collections.deque):
        yield from ((f"[{number}]", value) for number, value in enumerate(list(one)))
    elif isinstance(one, set | frozenset):
        yield from ((f"{{{id(value)}}}", value) for value in sorted(one, key=id))
    elif isinstance(one, np.ndarray) and one.dtype == object:
        yield from ((f"[{number}]", value) for number, value in enumerate(one.ravel().tolist()))
    elif isinstance(one, types.FunctionType):
        yield from _function_parts(one)
        return
    elif isinstance(one, types.MethodType):
        yield ".__self__", one.__self__
        yield ".__func__", one.__func__
        return
    elif isinstance(one, functools.partial):
        yield from ((".func", one.func), (".args", one.args), (".keywords", one.keywords))
    elif isinstance(one, type):
        if _is_users(one.__module__):
            data = (types.FunctionType, classmethod, staticmethod, property, types.MemberDescriptorType)
            for name, value in vars(one).items():
                if isinstance(value, types.FunctionType) or (
                    not name.startswith("__") and not isinstance(value, data)
                ):
                    yield f".{name}", value
        return
    kind = type(one)
    for base in kind.__mro__:
        for name, member in vars(base).items():
            if isinstance(member, types.MemberDescriptorType) and "__slots__" in vars(base):
                try:
                    yield f".{name}", member.__get__(one, kind)
                except AttributeError:
                    yield f".{name}", "(unset)"
    attributes = getattr(one, "__dict__", None)
    if type(attributes) is dict and not isinstance(one, torch.Tensor | type):
        for name, value in list(attributes.items()):
            yield f".{name}", value
    if _is_users(kind.__module__) and not isinstance(one, type):
        yield ".__class__", kind


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if not _is_users(function.__module__):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"<{name}>", cell.cell_contents
        except ValueError:
            yield f"<{name}>", "(empty)"
    yield ".__defaults__", function.__defaults__
    yield ".__dict__", function.__dict__
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if not isinstance(value, types.ModuleType | type | types.FunctionType | types.BuiltinFunctionType):
            yield f"<global {name}>", value


def _is_users(module: str | None) -> bool:
    root = (module or "").partition(".")[0]
    loaded = getattr(sys.modules.get(root), "__file__", None) or ""
    return root not in sys.stdlib_module_names and "site-packages" not in loaded and root != "vlmdoctor"


def _plain(values: dict[str, Any]) -> list[Any]:
    return [(name, value) for name, value in values.items() if type(value) in ATOMS]


def _place(file: Any) -> str:
    if file.closed:
        return "closed"
    try:
        return str(file.tell())
    except (OSError, ValueError):  # it is being iterated over, or nothing can be sought in it
        return "unknown"


def _digest(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return "meta"
    if tensor.is_sparse:
        return _digest(tensor.coalesce().values())
    if tensor.layout is not torch.strided:
        return str(tensor.layout)
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha1(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"").hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha1(repr(value).encode()).hexdigest()


def _process() -> Iterator[tuple[str, str]]:
    from torch.nn.modules import module as modules
    from torch.optim import optimizer as optimizers

    yield "process random", _hash(random.getstate())
    numpy_state = np.random.get_state()
    yield "process numpy random", hashlib.sha1(numpy_state[1].tobytes()).hexdigest() + str(numpy_state[2:])
    yield "process torch random", hashlib.sha1(torch.get_rng_state().numpy().tobytes()).hexdigest()
    yield "process default dtype", str(torch.get_default_dtype())
    yield "process default device", str(torch.get_default_device())
    yield "process grad mode", str(torch.is_grad_enabled())
    yield "process inference mode", str(torch.is_inference_mode_enabled())
    yield "process anomaly", str(torch.is_anomaly_enabled())
    yield "process deterministic", str(torch.are_deterministic_algorithms_enabled())
    yield "process autocast", f"{torch.is_autocast_enabled('cpu')} {torch.get_autocast_dtype('cpu')}"
    yield "process matmul precision", torch.get_float32_matmul_precision()
    yield "process threads of torch", str(torch.get_num_threads())
    yield "process numpy errors", str(np.geterr())
    yield "process warnings", str(len(warnings.filters)) + _hash(warnings.filters)
    yield "process warn functions", f"{id(warnings.showwarning):x}"
    yield "process environment", _hash(sorted(os.environ.items()))
    yield "process folder", str(Path.cwd())
    yield "process threads", str(sorted(t.name for t in threading.enumerate() if not t.daemon))
    yield "process children", str(sorted(c.pid or 0 for c in multiprocessing.active_children()))
    yield "process modes", f"{torch._C._len_torch_function_stack()} {torch._C._len_torch_dispatch_stack()}"
    hooks = [
        len(v) for k, v in sorted(vars(modules).items()) if k.startswith("_global") and hasattr(v, "clear")
    ]
    hooks += [len(v) for k, v in sorted(vars(optimizers).items()) if k.startswith("_global")]
    yield "process global hooks", str(hooks)
    handlers = {number.name: signal.getsignal(number) for number in signal.Signals}
    yield "process signal handlers", _hash({k: f"{id(v):x}" for k, v in handlers.items() if callable(v)})
    yield "process module class", f"{id(nn.Module.__call__):x} {id(nn.functional.cross_entropy):x}"
