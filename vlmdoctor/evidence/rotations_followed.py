"""Following rotary tables through a forward pass, operation by operation.

A product of a table with something is a rotation. Where one of its factors comes from such a product already,
through sums, slices and copies alone, it was rotated twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.attempts_model import rotary_modules
from vlmdoctor.evidence.rotary_tables import stored_tables
from vlmdoctor.evidence.rotations import Rotations
from vlmdoctor.invoke import run
from vlmdoctor.subject import Subject, canonical_name
from vlmdoctor.unchanged import copy_of, unchanged

_KEEPS = {  # what moves or adds numbers, and keeps what they are
    "add", "sub", "rsub", "neg", "cat", "stack", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze",
    "transpose", "permute", "t", "expand", "slice", "select", "split", "split_with_sizes", "chunk", "unbind",
    "index", "index_select", "gather", "_to_copy", "clone", "contiguous", "alias", "detach", "repeat",
    "view_as_complex", "view_as_real", "copy", "lift_fresh", "flatten", "unflatten", "as_strided", "real",
    "imag", "repeat_interleave", "roll", "flip", "complex", "slice_scatter", "where",
}  # fmt: skip


def followed(subject: Subject) -> Rotations:
    """Runs the model once and leaves it as it was."""
    makers = [module for _, module in rotary_modules(subject.model)]
    stored = [] if makers else _tables_of_any_width(subject.model)
    if not makers and not stored:
        raise Unavailable("no rotary positions were found")
    follower = _Follower(stored)
    with (
        unchanged(subject),
        torch.no_grad(),
        _told_where(subject.model, follower),
        _seeded(makers, follower),
        follower,
    ):
        run(subject.model, copy_of(subject.batch), subject.loss_fn)
    return Rotations(follower.rotated, tuple(dict.fromkeys(follower.twice)))


class _Follower(TorchDispatchMode):
    """Marks tables and what was multiplied with them."""

    def __init__(self, tables: list[torch.Tensor]) -> None:
        super().__init__()
        self.tables, self.products = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        self.rotated = 0
        self.twice: list[str] = []
        self.inside: list[str] = []
        for table in tables:
            self.tables[table] = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        given = list(_tensors(args))
        table = [t for t in given if t in self.tables]
        product = [t for t in given if t in self.products]
        if not table and not product:
            return output
        name = function.overloadpacket.__name__.rstrip("_")
        if name == "mul" and table and len(table) < len(given):
            self.rotated += 1
            if product and self.inside:
                self.twice.append(self.inside[-1])
            marked = self.products
        elif name == "mul" and table and len(table) == len(given):
            marked = self.tables
        elif name in _KEEPS:
            marked = self.products if product else self.tables
        else:
            return output
        for tensor in _tensors(output):
            marked[tensor] = True
        return output


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


@contextlib.contextmanager
def _seeded(makers: list[nn.Module], follower: _Follower) -> Iterator[None]:
    def note(module: nn.Module, given: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if tensor.is_floating_point() or tensor.is_complex():
                follower.tables[tensor] = True

    with contextlib.ExitStack() as hooks:
        for module in makers:
            hooks.callback(module.register_forward_hook(note).remove)
        yield


@contextlib.contextmanager
def _told_where(model: nn.Module, follower: _Follower) -> Iterator[None]:
    """Keeps the name of the module that runs."""
    with contextlib.ExitStack() as hooks:
        for raw_name, module in model.named_modules():
            name = canonical_name(raw_name) or type(model).__name__

            def enter(_: Any, __: Any, name: str = name) -> None:
                follower.inside.append(name)

            def leave(_: Any, __: Any, ___: Any) -> None:
                follower.inside.pop()

            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


def _tables_of_any_width(model: nn.Module) -> list[torch.Tensor]:
    """The cos, sin and complex tables that the model holds."""
    widths = {
        t.shape[-1]
        for module in model.modules()
        for t in (*module._buffers.values(), *vars(module).values())
        if isinstance(t, torch.Tensor) and 2 <= t.ndim <= 4 and (t.is_floating_point() or t.is_complex())
    }
    found = [t for width in widths for head in (width, 2 * width) for t in stored_tables(model, head)]
    return [t.tensor for t in found if t.kind != "frequencies"]
