"""Following rotary tables through a forward pass, operation by operation.

A product of a table with something is a rotation. Where one of its factors comes from such a product already,
through sums, slices and copies alone, it was rotated twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.rotations import Rotations
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.execution import rotary_modules
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.probes.listening import Listening, Outcome
from vlmdoctor.probes.one_pass import observed
from vlmdoctor.probes.positions.rotary_tables import stored_tables
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.subject import Subject

_KEEPS = {  # what moves or adds numbers, and keeps what they are
    "add", "sub", "rsub", "neg", "cat", "stack", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze",
    "transpose", "permute", "t", "expand", "slice", "select", "split", "split_with_sizes", "chunk", "unbind",
    "index", "index_select", "gather", "_to_copy", "clone", "contiguous", "alias", "detach", "repeat",
    "view_as_complex", "view_as_real", "copy", "lift_fresh", "flatten", "unflatten", "as_strided", "real",
    "imag", "repeat_interleave", "roll", "flip", "complex", "slice_scatter", "where",
}  # fmt: skip


def probe(subject: Subject, gather: Gatherer) -> Rotations:
    """Follows rotary tables through the one pass."""
    passed(gather)
    return observed(gather, "vlmdoctor.probes.positions.rotations")


def observer(subject: Subject, gather: Gatherer) -> RotaryFollower:
    """Follows rotary tables; raises `Unavailable` where there are none."""
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    makers = [module for _, module in rotary_modules(subject.model)]
    stored = [] if makers else _tables_of_any_width(subject.model)
    if not makers and not stored:
        raise Unavailable("no rotary positions were found")
    return RotaryFollower(innermost(subject.model), makers, stored)


class RotaryFollower:
    """Knows in which module each product with a rotary table was made."""

    def __init__(self, model: nn.Module, makers: list[nn.Module], stored: list[torch.Tensor]) -> None:
        self._names = {m: canonical_name(n) or type(model).__name__ for n, m in model.named_modules()}
        self._makers, self._stored = makers, stored

    def attach(self, listening: Listening) -> None:
        """Asks for every operation, for the tables as they are made, and for where the pass is."""
        self._follower = _Follower(self._stored, listening)
        for module in self._names:
            listening.before(module, self._enter)
            listening.after(module, self._leave)
        for module in self._makers:
            listening.after(module, self._note)
        listening.around(self._follower)

    def _enter(self, module: nn.Module, given: Any, keywords: Any) -> None:
        self._follower.inside.append(self._names[module])

    def _leave(self, module: nn.Module, given: Any, keywords: Any, output: Any) -> None:
        # A module that raised and was caught by its caller has not said that it ended.
        inside = self._follower.inside
        while inside and inside.pop() != self._names[module]:
            pass

    def _note(self, module: nn.Module, given: Any, keywords: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if tensor.is_floating_point() or tensor.is_complex():
                self._follower.tables[tensor] = True

    def conclude(self, outcome: Outcome, forward: Forward) -> Rotations:
        """What was rotated, and what twice."""
        return Rotations(rotated=self._follower.rotated, twice=tuple(dict.fromkeys(self._follower.twice)))


class _Follower(TorchDispatchMode):
    """Marks tables and what was multiplied with them."""

    def __init__(self, tables: list[torch.Tensor], listening: Listening) -> None:
        super().__init__()
        self._listening = listening
        self.tables, self.products = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        self.rotated = 0
        self.twice: list[str] = []
        self.inside: list[str] = []
        for table in tables:
            self.tables[table] = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if self._listening.busy:
            return output
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
