"""Whatever holds references: its contents at one moment, and how to put them back in place.

Nothing here runs the user's code: contents are read and written by the built-in types' own methods, and
compared by identity.
"""

from __future__ import annotations

import array
import types
from collections import OrderedDict, deque
from collections.abc import Iterator
from operator import is_
from typing import Any, Protocol


class Holder(Protocol):
    """Something with places that refer to objects."""

    def items(self) -> Iterator[tuple[Any, Any]]:
        """(place, object) of each."""

    def put(self, place: Any, value: Any) -> None:
        """Replaces what is at a place."""

    def restore(self) -> None:
        """Gives back the contents of the moment at which this was made; does so any number of times."""


def _same(now: Any, then: Any) -> bool:
    return len(now) == len(then) and all(map(is_, now, then))


class DictHolder:
    """A dictionary, of a subclass perhaps, or the attributes of an object."""

    __slots__ = ("held", "keys", "ordered", "values")

    def __init__(self, held: dict[Any, Any]) -> None:
        self.held = held
        self.keys = list(dict.keys(held))
        self.values = list(dict.values(held))
        self.ordered = isinstance(held, OrderedDict)
        if self.ordered:
            self.keys = list(OrderedDict.keys(held))  # type: ignore[arg-type]
            self.values = [dict.__getitem__(held, key) for key in self.keys]

    def items(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.keys, self.values, strict=True)

    def put(self, place: Any, value: Any) -> None:
        dict.__setitem__(self.held, place, value)

    def restore(self) -> None:
        held = self.held
        if self.ordered:
            if not _same(list(OrderedDict.keys(held)), self.keys):  # type: ignore[arg-type]
                OrderedDict.clear(held)
            elif all(dict.__getitem__(held, k) is v for k, v in self.items()):
                return
            for key, value in self.items():
                OrderedDict.__setitem__(held, key, value)
            return
        if _same(dict.keys(held), self.keys):
            if not all(map(is_, dict.values(held), self.values)):
                for key, value in self.items():
                    dict.__setitem__(held, key, value)
            return
        # Written first and removed afterwards, so that no attribute is missing at any moment.
        for key, value in self.items():
            dict.__setitem__(held, key, value)
        if len(held) != len(self.keys):
            known = dict.fromkeys(self.keys)
            for key in [key for key in dict.keys(held) if key not in known]:
                dict.__delitem__(held, key)
        if not _same(dict.keys(held), self.keys):  # the order has a meaning
            dict.clear(held)
            for key, value in self.items():
                dict.__setitem__(held, key, value)


class ListHolder:
    """A list."""

    __slots__ = ("held", "values")

    def __init__(self, held: list[Any]) -> None:
        self.held, self.values = held, list.copy(held)

    def items(self) -> Iterator[tuple[Any, Any]]:
        return enumerate(self.values)

    def put(self, place: Any, value: Any) -> None:
        list.__setitem__(self.held, place, value)

    def restore(self) -> None:
        if list.__len__(self.held) != len(self.values) or not all(
            map(is_, list.__iter__(self.held), self.values)
        ):
            list.__setitem__(self.held, slice(None), self.values)


class DequeHolder:
    """A deque."""

    __slots__ = ("held", "values")

    def __init__(self, held: deque[Any]) -> None:
        self.held, self.values = held, list(deque.__iter__(held))

    def items(self) -> Iterator[tuple[Any, Any]]:
        return enumerate(self.values)

    def put(self, place: Any, value: Any) -> None:
        deque.__setitem__(self.held, place, value)

    def restore(self) -> None:
        if not _same(list(deque.__iter__(self.held)), self.values):
            deque.clear(self.held)
            deque.extend(self.held, self.values)


class SetHolder:
    """A set; what is in one can't be replaced."""

    __slots__ = ("held", "values")

    def __init__(self, held: set[Any]) -> None:
        self.held, self.values = held, set.copy(held)

    def items(self) -> Iterator[tuple[Any, Any]]:
        return ((None, value) for value in set.__iter__(self.values))

    def put(self, place: Any, value: Any) -> None:
        raise TypeError("a set has no places")

    def restore(self) -> None:
        if not _same(list(set.__iter__(self.held)), list(set.__iter__(self.values))):
            set.clear(self.held)
            set.update(self.held, self.values)


class BytesHolder:
    """A bytearray or an array of numbers."""

    __slots__ = ("held", "values")

    def __init__(self, held: bytearray | array.array[Any]) -> None:
        self.held: Any = held  # of the type of `values`
        self.values = held[:]

    def items(self) -> Iterator[tuple[Any, Any]]:
        return iter(())

    def put(self, place: Any, value: Any) -> None:
        raise TypeError("bytes refer to nothing")

    def restore(self) -> None:
        if self.held != self.values:
            self.held[:] = self.values


class SlotsHolder:
    """The attributes of an object that are no dictionary's, by the descriptors of its class."""

    __slots__ = ("descriptors", "held", "values")

    def __init__(self, held: Any, descriptors: tuple[types.MemberDescriptorType, ...]) -> None:
        self.held, self.descriptors = held, descriptors
        self.values = [self._now(descriptor) for descriptor in descriptors]

    def _now(self, descriptor: types.MemberDescriptorType) -> Any:
        try:
            return descriptor.__get__(self.held, type(self.held))
        except AttributeError:
            return _UNSET

    def items(self) -> Iterator[tuple[Any, Any]]:
        pairs = zip(self.descriptors, self.values, strict=True)
        return ((descriptor, value) for descriptor, value in pairs if value is not _UNSET)

    def put(self, place: Any, value: Any) -> None:
        place.__set__(self.held, value)

    def restore(self) -> None:
        for descriptor, value in zip(self.descriptors, self.values, strict=True):
            now = self._now(descriptor)
            if now is value:
                continue
            if value is _UNSET:
                descriptor.__delete__(self.held)
            else:
                descriptor.__set__(self.held, value)


class CellHolder:
    """A variable that functions share."""

    __slots__ = ("held", "value")

    def __init__(self, held: types.CellType) -> None:
        self.held = held
        self.value = _contents(held)

    def items(self) -> Iterator[tuple[Any, Any]]:
        if self.value is not _UNSET:
            yield None, self.value

    def put(self, place: Any, value: Any) -> None:
        self.held.cell_contents = value

    def restore(self) -> None:
        if _contents(self.held) is self.value:
            return
        if self.value is _UNSET:
            del self.held.cell_contents
        else:
            self.held.cell_contents = self.value


class ClassHolder:
    """The attributes of a class of the user's."""

    __slots__ = ("held", "values")

    def __init__(self, held: type) -> None:
        self.held = held
        self.values = self._now()

    def _now(self) -> dict[str, Any]:
        described = (types.MemberDescriptorType, types.GetSetDescriptorType)
        own = type.__getattribute__(self.held, "__dict__")
        return {
            name: value
            for name, value in own.items()
            if not name.startswith(("__", "_abc_")) and not isinstance(value, described)
        }

    def items(self) -> Iterator[tuple[Any, Any]]:
        return iter(self.values.items())

    def put(self, place: Any, value: Any) -> None:
        type.__setattr__(self.held, place, value)

    def restore(self) -> None:
        now = self._now()
        for name, value in self.values.items():
            if now.get(name, _UNSET) is not value:
                type.__setattr__(self.held, name, value)
        for name in now:
            if name not in self.values:
                type.__delattr__(self.held, name)


class GlobalsHolder:
    """Those variables of a module that a function uses."""

    __slots__ = ("held", "names", "values")

    def __init__(self, held: dict[str, Any], names: tuple[str, ...]) -> None:
        self.held = held
        self.names = names
        self.values = [held.get(name, _UNSET) for name in names]

    def items(self) -> Iterator[tuple[Any, Any]]:
        pairs = zip(self.names, self.values, strict=True)
        return ((name, value) for name, value in pairs if value is not _UNSET)

    def put(self, place: Any, value: Any) -> None:
        self.held[place] = value

    def restore(self) -> None:
        for name, value in zip(self.names, self.values, strict=True):
            if self.held.get(name, _UNSET) is value:
                continue
            if value is _UNSET:
                self.held.pop(name, None)
            else:
                self.held[name] = value


class _Unset:
    pass


_UNSET = _Unset()


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _UNSET
