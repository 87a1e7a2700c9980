"""Values of a run folder's JSON, brought to the types of evidence; a wrong one is left out and counted."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

MOST = 2**53  # of a count: the largest whole number that every reader of JSON keeps
WORDS = ("nan", "inf", "infinity")  # what stands for a number that JSON can't hold


class Misfit(Exception):
    """A value is not of the type that its field has."""


class LeftOut:
    """The values that were left out: how many, and where the first one is."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def add(self, place: str) -> None:
        """Notes one more, at `place`."""
        self.count += 1
        self.first = self.first or place

    def sentence(self, folder: object) -> str | None:
        """What was left out; None where nothing was."""
        if not self.count:
            return None
        others = f", and {self.count - 1:,} more" if self.count > 1 else ""
        return (
            f"the run folder '{folder}' is not as vlmdoctor writes it: {self.first}{others} "
            f"{'is' if self.count == 1 else 'are'} of another type and left out"
        )


def number(value: object) -> float | None:
    """A number, also where JSON could not hold it and a word stands for it; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return value
    if isinstance(value, int):
        return float(value) if abs(value) < 10**300 else None
    if isinstance(value, str) and value[:10].lower().removeprefix("-").removeprefix("+") in WORDS:
        try:
            return float(value)
        except ValueError:  # two signs
            return None
    return None


def fitted(hint: Any, value: Any) -> Any:
    """`value`, as JSON gives it, as the type `hint` of a field of evidence; raises `Misfit`.

    Counts, sizes and numbers of steps are from 0 to MOST.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else fitted(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple and isinstance(value, list):
        return tuple(fitted(arguments[0], item) for item in value)
    if origin is collections.abc.Mapping and isinstance(value, dict):
        return {name: fitted(arguments[1], item) for name, item in value.items()}
    if hint is bool and isinstance(value, bool):
        return value
    if hint is float and (found := number(value)) is not None:
        return found
    if hint is int and type(value) in (int, float) and 0 <= value < MOST and value == int(value):
        return int(value)
    if hint is str and isinstance(value, str):
        return value
    if hint is dict and isinstance(value, dict):
        return value
    raise Misfit


def built(kind: type, entry: object, place: str, left_out: LeftOut) -> Any:
    """An instance of the dataclass `kind` from a JSON object; None where a field without a default is wrong.

    A wrong value of a field with a default is left out; names that are no fields are passed over.
    """
    if not isinstance(entry, dict):
        left_out.add(place)
        return None
    values = {}
    for name, (hint, needed) in _fields(kind).items():
        try:
            if name in entry:
                values[name] = fitted(hint, entry[name])
            elif needed:
                raise Misfit
        except Misfit:
            left_out.add(f"'{name}' of {place}")
            if needed:
                return None
    return kind(**values)


def chosen(
    hints: Mapping[str, Any], entry: Mapping[str, Any], place: str, left_out: LeftOut
) -> dict[str, Any]:
    """The entries whose values are of the types of `hints`; those that `hints` does not name are kept."""
    kept = {}
    for name, value in entry.items():
        try:
            kept[name] = fitted(hints[name], value) if name in hints else value
        except Misfit:
            left_out.add(f"'{name}' of {place}")
    return kept


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Name -> (type, whether it has no default)."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(kind)
    }
