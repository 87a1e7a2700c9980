"""What moves when it is read: a copy is read in its place, or nothing is where no copy can be made."""

from __future__ import annotations

import itertools
import warnings
from typing import Any, NoReturn

from vlmdoctor.errors import WouldMove
from vlmdoctor.sandbox.kinds import COPIED_ITERATORS

_DEEPEST = 8


def twin_of(iterator: Any, depth: int = 0) -> Any:
    """A copy that moves by itself; None where none can be made."""
    kind = type(iterator)
    if kind not in COPIED_ITERATORS or depth > _DEEPEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # copying those of itertools is deprecated
            made = iterator.__reduce__()
        state = None
        build, arguments, *rest = made
        if rest:
            state = rest[0]
        own = [_part(argument, depth) for argument in arguments]
        twin = build(*own)
        if state is not None:
            twin.__setstate__(_state(state, depth))
    except _NoTwinError:
        return None
    except Exception:  # whatever it refuses
        return _counting(iterator)
    return twin if type(twin) is kind else None


class _NoTwinError(Exception):
    pass


def _part(value: Any, depth: int) -> Any:
    if not any("__next__" in vars(base) for base in type(value).__mro__):
        return value
    twin = twin_of(value, depth + 1)
    if twin is None:
        raise _NoTwinError
    return twin


def _state(state: Any, depth: int) -> Any:
    if isinstance(state, tuple):
        return tuple(_state(one, depth) for one in state)
    # What `itertools.cycle` has saved so far: both would add to it.
    return list(state) if type(state) is list else _part(state, depth)


def _counting(iterator: Any) -> Any:
    """The copy of a count that says by its text alone where it is."""
    text = repr(iterator)
    if type(iterator) is not itertools.count or not text.removeprefix("count(").removesuffix(")").isdigit():
        return None
    return itertools.count(int(text[6:-1]))


class Refusing:
    """In the place of something that can't be put back: whoever uses it ends the probe that ran them."""

    def __init__(self, reason: str) -> None:
        vars(self)["_reason"] = reason

    def _refuse(self, *given: Any, **named: Any) -> NoReturn:
        raise WouldMove(vars(self)["_reason"])

    __next__ = __call__ = __enter__ = __exit__ = __len__ = __getitem__ = __await__ = __aiter__ = _refuse

    def __iter__(self) -> Refusing:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def __copy__(self) -> Refusing:
        return self

    def __deepcopy__(self, memo: Any) -> Refusing:
        return self

    def __reduce__(self) -> Any:
        return Refusing, (vars(self)["_reason"],)
