"""The walk: everything that the user's objects lead to, each once, by its kind."""

from __future__ import annotations

import copy
import io
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from vlmdoctor.sandbox import holders
from vlmdoctor.sandbox.kinds import ATOM, ATOMS, is_users, kind_of, slots_of

# A model of seven thousand modules leads to some fifty thousand objects.
MOST_OBJECTS = 400_000
# Longer containers are kept as they are; what is in them is not looked into.
LONG = 10_000
LONGEST = 5_000_000
_EMPTY = (dict, OrderedDict, list, set)
Path = Any  # a text, or (the path of what leads to it, its place there)


class Reach:
    """What some objects lead to.

    Attributes:
        tensors: By identity.
        holders: What refers to other objects, with its contents of now.
        empty: Containers that are empty.
        sources: Generators of random numbers, arrays and files, as (kind, object, path).
        moving: (holder, its place, object, path, what it is) of what moves when it is read; holder None where
            nothing can be put in its place.
        left_out: (path, why) of what was not looked into.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self.tensors: dict[int, torch.Tensor] = {}
        self.holders: list[holders.Holder] = []
        self.empty: list[Any] = []
        self.sources: list[tuple[str, Any, Path]] = []
        self.moving: list[tuple[holders.Holder | None, Any, Any, Path, str]] = []
        self.left_out: list[tuple[Path, str]] = []
        self._seen: set[int] = set()
        self._kinds: dict[type, tuple[str, str]] = {}
        self._slots: dict[type, tuple[Any, ...]] = {}
        self._waiting: deque[tuple[Any, holders.Holder | None, Any, Path]] = deque()
        self._alive: list[Any] = []  # an identity is an object's only as long as it lives
        self.extend(roots)

    def snapshot(self) -> Reach:
        """What was reached so far, apart from what is reached later."""
        made = copy.copy(self)
        made.tensors, made.holders = dict(self.tensors), list(self.holders)
        made.empty, made.sources = list(self.empty), list(self.sources)
        made.moving, made.left_out = list(self.moving), list(self.left_out)
        return made

    def extend(self, roots: Mapping[str, Any]) -> None:
        """Walks from further objects, by their names."""
        for name, root in roots.items():
            if root is not None:
                self._alive.append(root)
                self._waiting.append((root, None, None, name))
                self._walk()

    def _walk(self) -> None:
        waiting, seen, kinds = self._waiting, self._seen, self._kinds
        while waiting:
            one, holder, place, path = waiting.popleft()
            kind = type(one)
            known = kinds.get(kind)
            if known is None:
                known = kinds[kind] = kind_of(kind)
            name, what = known
            if name == ATOM:
                continue
            if name in ("live", "iterator"):
                self.moving.append((holder, place, one, path, what))
                continue
            if id(one) in seen:
                continue
            seen.add(id(one))
            if len(seen) > MOST_OBJECTS:
                self.left_out.append((path, f"more than {MOST_OBJECTS:,} objects"))
                waiting.clear()
                return
            _VISIT[name](self, one, holder, place, path)

    def _enter(self, holder: holders.Holder, path: Path) -> None:
        self.holders.append(holder)
        self._enqueue(holder.items(), holder, path)

    def _enqueue(self, pairs: Iterable[tuple[Any, Any]], holder: holders.Holder | None, path: Path) -> None:
        add, empty = self._waiting.append, self.empty.append
        for place, value in pairs:
            kind = type(value)
            if kind in ATOMS:
                continue
            if kind in _EMPTY and not value:
                empty(value)
                continue
            add((value, holder, place, (path, place)))

    def _object(self, one: Any, holder: Any, place: Any, path: Path) -> None:
        self._attributes(one, path)
        kind = type(one)
        if is_users(kind.__module__ or ""):
            self._waiting.append((kind, None, None, (path, "__class__")))

    def _attributes(self, one: Any, path: Path) -> None:
        kind = type(one)
        try:
            attributes = object.__getattribute__(one, "__dict__")
        except Exception:  # it has none, or its class makes them up
            attributes = None
        if type(attributes) is dict:
            if attributes:
                self._enter(holders.DictHolder(attributes), path)
            else:
                self.empty.append(attributes)
        slots = self._slots.get(kind)
        if slots is None:
            slots = self._slots[kind] = slots_of(kind)
        if slots:
            self._enter(holders.SlotsHolder(one, slots), path)

    def _tensor(self, one: torch.Tensor, holder: Any, place: Any, path: Path) -> None:
        self.tensors[id(one)] = one
        attributes = one.__dict__
        if attributes:
            self._enter(holders.DictHolder(attributes), path)
        else:
            self.empty.append(attributes)

    def _container(self, one: Any, holder: Any, place: Any, path: Path) -> None:
        kind = type(one)
        base = next(base for base in (dict, list, set, deque) if issubclass(kind, base))
        length = base.__len__(one)
        if length > LONGEST:
            self.left_out.append((path, f"its {length:,} elements"))
            return
        made = _HOLDERS[base](one)
        self.holders.append(made)
        if length > LONG:
            if any(kind not in ATOMS for kind in _some_kinds(made)):
                self.left_out.append((path, f"what is in its {length:,} elements"))
        else:
            self._enqueue(made.items(), made, path)
            if base is dict and any(type(key) not in ATOMS for key in made.keys):
                self._enqueue(((None, key) for key in made.keys), None, (path, "keys"))
        if kind is not base and kind.__flags__ & (1 << 9):
            self._object(one, holder, place, path)

    def _bytes(self, one: Any, holder: Any, place: Any, path: Path) -> None:
        self.holders.append(holders.BytesHolder(one))

    def _sequence(self, one: Any, holder: Any, place: Any, path: Path) -> None:
        base = tuple if isinstance(one, tuple) else frozenset
        if base.__len__(one) > LONG:
            self.left_out.append((path, f"what is in its {base.__len__(one):,} elements"))
            return
        self._enqueue(enumerate(base.__iter__(one)), None, path)
        if type(one) is not base:
            self._attributes(one, path)

    def _cell(self, one: types.CellType, holder: Any, place: Any, path: Path) -> None:
        self._enter(holders.CellHolder(one), path)

    def _function(self, one: types.FunctionType, holder: Any, place: Any, path: Path) -> None:
        names = one.__code__.co_freevars
        for name, cell in zip(names, one.__closure__ or (), strict=False):
            self._waiting.append((cell, None, None, (path, name)))
        for value in (one.__defaults__, one.__kwdefaults__):
            if value:
                self._waiting.append((value, None, None, path))
        if is_users(one.__globals__.get("__name__") or ""):
            used = tuple(name for name in _global_names(one.__code__) if _is_state(one.__globals__.get(name)))
            if used:
                self._enter(holders.GlobalsHolder(one.__globals__, used), f"{one.__module__}")
        self._attributes(one, path)

    def _method(self, one: Any, holder: Any, place: Any, path: Path) -> None:
        self._waiting.append((one.__self__, None, None, (path, "__self__")))
        self._waiting.append((one.__func__, None, None, (path, "__func__")))

    def _partial(self, one: Any, holder: Any, place: Any, path: Path) -> None:
        self._enqueue((("func", one.func), ("args", one.args), ("keywords", one.keywords)), None, path)
        self._attributes(one, path)

    def _wrapped(self, one: Any, holder: Any, place: Any, path: Path) -> None:
        self._waiting.append((one.__func__, None, None, path))

    def _property(self, one: property, holder: Any, place: Any, path: Path) -> None:
        self._enqueue((("fget", one.fget), ("fset", one.fset)), None, path)

    def _class(self, one: type, holder: Any, place: Any, path: Path) -> None:
        if not is_users(one.__module__ or ""):
            return
        self._enter(holders.ClassHolder(one), path)
        for base in type.__dict__["__bases__"].__get__(one):
            self._waiting.append((base, None, None, path))

    def _array(self, one: Any, holder: Any, place: Any, path: Path) -> None:
        self.sources.append(("array", one, path))
        if one.dtype.hasobject and one.size <= LONG and type(one) is sys.modules["numpy"].ndarray:
            self._enqueue(enumerate(one.ravel().tolist()), None, path)

    def _source(self, one: Any, holder: Any, place: Any, path: Path) -> None:
        self.sources.append((self._kinds[type(one)][0], one, path))

    def _file(self, one: Any, holder: Any, place: Any, path: Path) -> None:
        if type(one) in (io.BytesIO, io.StringIO):
            self.sources.append(("memory file", one, path))
        elif one is sys.stdin or one is sys.stdout or one is sys.stderr:
            return
        elif (reason := _unseekable(one)) is None:
            self.sources.append(("file", one, path))
        elif reason:
            self.moving.append((holder, place, one, path, reason))


def _unseekable(file: Any) -> str | None:
    """Why the place in a file can't be restored; None where it can, empty where nothing is read from it."""
    if type(file) not in (
        io.BufferedReader,
        io.BufferedRandom,
        io.FileIO,
        io.TextIOWrapper,
        io.BufferedWriter,
    ):
        return f"an open file of type {type(file).__name__}"
    try:
        raw = file.buffer if isinstance(file, io.TextIOWrapper) else file
        raw = getattr(raw, "raw", raw)
        if file.closed or not file.readable():
            return ""
        if type(raw) is not io.FileIO or not file.seekable():
            return "an open file in which nothing can be sought"
        file.tell()
    except (OSError, ValueError):
        return "an open file that is being iterated over"
    return None


def _is_state(value: Any) -> bool:
    return not isinstance(value, types.ModuleType | types.BuiltinFunctionType)


def _some_kinds(holder: Any) -> set[type]:
    return {type(value) for _, (_, value) in zip(range(32), holder.items(), strict=False)}


_NAMES: weakref.WeakKeyDictionary[types.CodeType, tuple[str, ...]] = weakref.WeakKeyDictionary()


def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Names that a function, or one that is defined inside it, may read from its module or write there."""
    names = _NAMES.get(code)
    if names is None:
        inner = (_global_names(one) for one in code.co_consts if isinstance(one, types.CodeType))
        names = _NAMES[code] = tuple(dict.fromkeys([*code.co_names, *(n for each in inner for n in each)]))
    return names


_HOLDERS: dict[type, Any] = {
    dict: holders.DictHolder,
    list: holders.ListHolder,
    set: holders.SetHolder,
    deque: holders.DequeHolder,
}
_VISIT: dict[str, Any] = {
    "object": Reach._object,
    "tensor": Reach._tensor,
    **dict.fromkeys(("dict", "list", "set", "deque"), Reach._container),
    "bytes": Reach._bytes,
    "sequence": Reach._sequence,
    "cell": Reach._cell,
    "function": Reach._function,
    "method": Reach._method,
    "partial": Reach._partial,
    "wrapped": Reach._wrapped,
    "property": Reach._property,
    "class": Reach._class,
    "array": Reach._array,
    "file": Reach._file,
    **dict.fromkeys(("torch random", "numpy random", "python random"), Reach._source),
}


def shown(path: Path) -> str:
    """A path as Python would write it, such as `model.bank[3]`."""
    parts: list[str] = []
    while isinstance(path, tuple):
        path, place = path
        name = getattr(place, "__name__", place)
        if isinstance(name, str) and name.isidentifier():
            parts.append(f".{name}")
        else:
            parts.append(f"[{name!r}]" if type(name) in ATOMS else f"[{type(name).__name__}]")
    return f"{path}{''.join(reversed(parts[:12]))}"
