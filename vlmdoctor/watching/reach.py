"""All that a module may change in a pass: everything it can reach, noted so that it can be put back in place.

Tensors are not copied here, except small ones; what is written to them is seen by `writes`.
"""

from __future__ import annotations

import array
import collections
import functools
import io
import logging
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlmdoctor.watching.hook import Hook
from vlmdoctor.watching.writes import Unkeepable, same_bytes

MOST = 300_000  # objects
MOST_BYTES = 256 << 20  # of arrays and tensors that are copied

_ATOMS = (
    *(int, float, complex, bool, str, bytes, type(None), type(...), type(NotImplemented), range, slice),
    *(types.ModuleType, types.BuiltinFunctionType, types.CodeType, weakref.ref, logging.Logger, property),
)
# Libraries whose classes are not the user's: what their objects keep is no state of a model.
_LIBRARIES = {"torch", "torchvision", "torchgen", "numpy", "triton", "vlmdoctor"} | set(
    sys.stdlib_module_names
)
_HOLDERS = (list, dict, set, collections.deque, bytearray, array.array)

Step = Callable[[], object]


class Reached:
    """Everything within reach of `roots`, as it is now.

    Attributes:
        tensors: Those found.

    Raises:
        Unkeepable: Something there can't be kept.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.tensors: list[Tensor] = []
        self._steps: list[Step] = []
        self._bytes = 0
        self._seen: dict[int, Any] = {}  # held, so that no identity comes twice
        self._open: list[Any] = list(roots)
        while self._open:
            value = self._open.pop()
            if isinstance(value, _ATOMS) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            if len(self._seen) > MOST:
                raise Unkeepable(f"the model reaches more than {MOST:,} objects")
            self._note(value)
        # Small first: where there are very many bytes, the largest tensors are left to `writes`.
        for tensor in sorted(self.tensors, key=_bytes_of):
            self._note_values(tensor)

    def restore(self) -> None:
        """Puts everything back; more calls do no harm."""
        for step in self._steps:
            step()

    def _note(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, Tensor):
            self._note_tensor(value)
        elif isinstance(value, Hook | type):
            self._note_class(value)
        elif isinstance(value, tuple | frozenset):
            self._open += list(value)
        elif isinstance(value, torch.Generator):
            state = value.get_state().clone()
            self._steps.append(lambda: value.set_state(state))
        elif isinstance(value, random.Random):
            numbers = value.getstate()
            self._steps.append(lambda: value.setstate(numbers))
        elif kind.__module__.partition(".")[0] == "numpy":
            self._note_numpy(value)
        elif isinstance(value, types.MethodType):
            self._open += [value.__self__, value.__func__]
        elif isinstance(value, types.FunctionType):
            self._note_function(value)
        elif isinstance(value, functools.partial):
            self._open += [value.func, value.args, value.keywords]
        elif isinstance(value, torch.jit.ScriptModule):
            raise Unkeepable("a part of the model is TorchScript, whose attributes can't be read")
        elif isinstance(value, io.IOBase):
            raise Unkeepable("the model holds an open file")
        elif hasattr(kind, "__next__"):
            raise Unkeepable(f"the model holds an iterator ({kind.__name__}), which can't be wound back")
        else:
            self._note_object(value)

    def _note_object(self, value: Any) -> None:
        kind = type(value)
        holder = isinstance(value, _HOLDERS)
        if holder:
            self._note_holder(value)
        library = kind.__module__.partition(".")[0]
        if not holder and library in _LIBRARIES and not isinstance(value, nn.Module | types.SimpleNamespace):
            return
        attributes = getattr_static_dict(value)
        slots = list(_slots(kind))
        if attributes is None and not slots and not holder:
            raise Unkeepable(f"the model holds an object of type {kind.__name__}, whose state can't be read")
        if attributes is not None:
            self._note_holder(attributes)
        for descriptor in slots:
            self._note_slot(value, descriptor)
        self._open.append(kind)

    def _note_holder(self, value: Any) -> None:
        # Through the built-in type: what a subclass of the user's makes of these is not asked for.
        if isinstance(value, dict):
            base: Any = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
            pairs = list(dict.items(value))
            self._open += [one for pair in pairs for one in pair]

            def put_back() -> None:
                now = list(dict.items(value))
                if len(now) != len(pairs) or any(
                    a is not c or b is not d for (a, b), (c, d) in zip(now, pairs, strict=True)
                ):
                    base.clear(value)
                    for key, one in pairs:
                        base.__setitem__(value, key, one)

            self._steps.append(put_back)
            return
        if isinstance(value, bytearray | array.array):
            content = bytes(value)
            self._keep_bytes(len(content))
            copy = value[:]
            self._steps.append(lambda: None if bytes(value) == content else _refill(value, copy))
            return
        base = next(kind for kind in _HOLDERS if isinstance(value, kind))
        items = list(base.__iter__(value))
        self._open += items

        def refill() -> None:
            now = list(base.__iter__(value))
            if len(now) != len(items) or any(a is not b for a, b in zip(now, items, strict=True)):
                base.clear(value)
                (base.update if base is set else base.extend)(value, items)

        self._steps.append(refill)

    def _note_slot(self, value: Any, descriptor: Any) -> None:
        missing = object()
        try:
            kept = descriptor.__get__(value)
        except AttributeError:
            kept = missing
        else:
            self._open.append(kept)

        def put_back() -> None:
            try:
                now = descriptor.__get__(value)
            except AttributeError:
                now = missing
            if now is not kept:
                descriptor.__delete__(value) if kept is missing else descriptor.__set__(value, kept)

        self._steps.append(put_back)

    def _note_function(self, value: types.FunctionType) -> None:
        if (value.__module__ or "").partition(".")[0] in _LIBRARIES:
            return
        self._open += [value.__defaults__, value.__kwdefaults__]
        self._note_holder(value.__dict__)
        for cell in value.__closure__ or ():
            try:
                kept = cell.cell_contents
            except ValueError:  # it is empty
                continue
            self._open.append(kept)
            self._steps.append(functools.partial(setattr, cell, "cell_contents", kept))

    def _note_class(self, value: Any) -> None:
        if not isinstance(value, type) or value.__module__.partition(".")[0] in _LIBRARIES:
            return
        plain = (types.GetSetDescriptorType, types.MemberDescriptorType, classmethod, staticmethod)
        kept = {
            name: one
            for name, one in vars(value).items()
            if not name.startswith("__") and not isinstance(one, plain)
        }
        self._open += [*kept.values(), *value.__bases__]

        def put_back() -> None:
            for name in [name for name in vars(value) if name not in kept and not name.startswith("__")]:
                if not isinstance(vars(value)[name], plain):
                    type.__delattr__(value, name)
            for name, one in kept.items():
                if vars(value).get(name, put_back) is not one:
                    type.__setattr__(value, name, one)

        self._steps.append(put_back)

    def _note_numpy(self, value: Any) -> None:
        import numpy as np

        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                raise Unkeepable("the model holds an array of objects")
            self._keep_bytes(value.nbytes)
            kept = value.copy()
            self._steps.append(lambda: None if value.tobytes() == kept.tobytes() else np.copyto(value, kept))
        elif isinstance(value, np.random.Generator | np.random.BitGenerator):
            bits = value.bit_generator if isinstance(value, np.random.Generator) else value
            state = bits.state
            self._steps.append(lambda: setattr(bits, "state", state))
        elif isinstance(value, np.random.RandomState):
            numbers = value.get_state()
            self._steps.append(lambda: value.set_state(numbers))

    def _note_tensor(self, value: Tensor) -> None:
        if nn.parameter.is_lazy(value):
            raise Unkeepable("a parameter has no shape yet")
        self.tensors.append(value)
        attributes = getattr_static_dict(value)
        if attributes:
            self._note_holder(attributes)
        if not value.is_leaf:
            return
        gradient, requires_grad = value.grad, value.requires_grad
        if gradient is not None:
            self._open.append(gradient)

        def put_back() -> None:
            if value.grad is not gradient:
                value.grad = gradient
            if value.requires_grad != requires_grad:
                value.requires_grad_(requires_grad)

        self._steps.append(put_back)

    def _note_values(self, value: Tensor) -> None:
        if value.is_meta or type(value.data) is not Tensor or value.layout is not torch.strided:
            return
        # The storage may be exchanged by `tensor.data = other`, which is no operator.
        alias = value.detach()
        small = self._bytes + value.nbytes <= MOST_BYTES and value.device.type == "cpu"
        kept = alias.clone() if small else None
        self._bytes += value.nbytes if small else 0

        def put_back() -> None:
            with torch.no_grad():
                if (value.data_ptr(), value.shape, value.stride()) != (
                    alias.data_ptr(),
                    alias.shape,
                    alias.stride(),
                ):
                    value.data = alias
                if kept is not None and not same_bytes(alias, kept):
                    alias.data.copy_(kept)

        self._steps.append(put_back)

    def _keep_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes > MOST_BYTES:
            raise Unkeepable(f"the model keeps more than {MOST_BYTES >> 20} MiB in arrays")


def getattr_static_dict(value: Any) -> dict[str, Any] | None:
    """The dictionary of an object's attributes, without asking the object."""
    for kind in type(value).__mro__:
        descriptor = vars(kind).get("__dict__")
        if isinstance(descriptor, types.GetSetDescriptorType | types.MemberDescriptorType):
            return descriptor.__get__(value)
    return None


def _slots(kind: type) -> Iterator[Any]:
    for one in kind.__mro__:
        if one.__module__.partition(".")[0] not in _LIBRARIES:
            yield from (d for d in vars(one).values() if isinstance(d, types.MemberDescriptorType))


def _bytes_of(tensor: Tensor) -> int:
    return tensor.nbytes if tensor.layout is torch.strided else 0


def _refill(value: Any, copy: Any) -> None:
    value[:] = copy
