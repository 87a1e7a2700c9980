"""What kind of thing a type is to the walk, found out from the type alone: no code of the user's is run."""

from __future__ import annotations

import array
import functools
import io
import itertools
import random
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch

# Kinds of which nothing has to be kept.
ATOM = ""
ATOMS = frozenset(
    (
        *(int, float, complex, str, bytes, bool, type(None), type(...), type(NotImplemented), slice, range),
        *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
        *(types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.MethodDescriptorType),
        *(types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType),
        *(weakref.ref, weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary),
    )
)
# Objects of these packages belong to the process, to other threads, or keep themselves; PIL's close files.
SKIPPED = frozenset(
    (
        *(
            "logging",
            "threading",
            "importlib",
            "abc",
            "typing",
            "inspect",
            "asyncio",
            "concurrent",
            "weakref",
        ),
        *("ctypes", "subprocess", "multiprocessing", "pathlib", "datetime", "decimal", "fractions", "enum"),
        *("zoneinfo", "ast", "signal", "unittest", "_pytest", "pytest", "PIL", "tokenizers"),
        *("pyarrow", "wandb", "mlflow", "tensorboard", "rich", "tqdm", "huggingface_hub", "triton"),
    )
)
SKIPPED_OF_TORCH = (
    *("torch._dynamo", "torch._inductor", "torch.distributed", "torch.cuda", "torch.jit", "torch.fx"),
    *("torch._functorch", "torch._C", "torch.autograd", "torch.profiler"),
)
# Iterators of Python's own, of which a copy can be made that moves by itself.
_PLAIN: tuple[Iterable[Any], ...] = (
    *([], (), {}, {}.values(), {}.items(), set()),
    *("", "ä", b"", bytearray(), range(0), range(1 << 70)),
)
_PLAIN_ITERATORS = tuple(type(iter(one)) for one in _PLAIN)
COPIED_ITERATORS = frozenset(
    (
        *_PLAIN_ITERATORS,
        *map(type, (reversed([]), reversed({}))),
        *(enumerate, zip, map, filter, reversed, itertools.count, itertools.cycle, itertools.repeat),
        *(itertools.chain, itertools.islice, itertools.accumulate, itertools.starmap, itertools.compress),
        *(itertools.takewhile, itertools.dropwhile, itertools.filterfalse, itertools.zip_longest),
        *(itertools.product, itertools.permutations, itertools.combinations),
    )
)
_LIVE = {
    types.GeneratorType: "a live generator",
    types.CoroutineType: "a coroutine",
    types.AsyncGeneratorType: "a live generator",
}
_HANDLES = {
    ("socket", "socket"): "an open connection",
    ("ssl", "SSLSocket"): "an open connection",
    ("multiprocessing.connection", "Connection"): "an open connection",
    ("torch.utils.data.dataloader", "_MultiProcessingDataLoaderIter"): "a DataLoader's iterator with workers",
}
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that a class statement made, mostly


def kind_of(kind: type) -> tuple[str, str]:
    """(kind, what it is in words where it can't be kept) of a type."""
    if kind in ATOMS or kind.__module__ == "vlmdoctor.sandbox.iterators":
        return ATOM, ""
    mro = type.__dict__["__mro__"].__get__(kind)
    for base in mro:
        if base in _LIVE:
            return "live", _LIVE[base]
        if (what := _HANDLES.get((base.__module__, base.__qualname__))) is not None:
            return "live", what
        if base in _BY_BASE:
            return _BY_BASE[base], ""
    if (found := _numbers(mro)) is not None:
        return found, ""
    if kind in COPIED_ITERATORS:
        return "iterator", ""
    module = kind.__module__ or ""
    if module.partition(".")[0] in SKIPPED or module.startswith(SKIPPED_OF_TORCH):
        return ATOM, ""
    if not kind.__flags__ & _HEAP_TYPE and any("__next__" in vars(base) for base in mro):
        return "live", f"an iterator of type {kind.__name__}"
    return "object", ""


_BY_BASE: dict[type, str] = {
    torch.Tensor: "tensor",
    torch.Generator: "torch random",
    type: "class",
    types.FunctionType: "function",
    types.MethodType: "method",
    functools.partial: "partial",
    types.CellType: "cell",
    classmethod: "wrapped",
    staticmethod: "wrapped",
    property: "property",
    dict: "dict",
    list: "list",
    set: "set",
    deque: "deque",
    tuple: "sequence",
    frozenset: "sequence",
    types.MappingProxyType: ATOM,
    bytearray: "bytes",
    array.array: "bytes",
    random.SystemRandom: ATOM,
    random.Random: "python random",
    io.IOBase.__mro__[1]: "file",  # the base of those in C, too
}


def _numbers(mro: tuple[type, ...]) -> str | None:
    """The kind of numpy's types; numpy is not imported for it."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "random"):
        return None
    known = {
        numpy.memmap: ATOM,  # a file's contents, of any size
        numpy.ndarray: "array",
        numpy.generic: ATOM,
        numpy.random.Generator: "numpy random",
        numpy.random.BitGenerator: "numpy random",
        numpy.random.RandomState: "numpy random",
    }
    return next((known[base] for base in mro if base in known), None)


@functools.lru_cache(1024)
def is_users(module: str) -> bool:
    """Whether a module is the user's own: neither Python's, nor an installed package's, nor this one's."""
    root = module.partition(".")[0]
    if (root in sys.stdlib_module_names and root != "__main__") or root in ("vlmdoctor", "torch", ""):
        return False
    file = getattr(sys.modules.get(module) or sys.modules.get(root), "__file__", None) or ""
    return "site-packages" not in file and "dist-packages" not in file


def slots_of(kind: type) -> tuple[Any, ...]:
    """The descriptors of all `__slots__` of a class and its bases."""
    return tuple(
        member
        for base in type.__dict__["__mro__"].__get__(kind)
        if "__slots__" in vars(base)
        for member in vars(base).values()
        if isinstance(member, types.MemberDescriptorType)
    )
