"""Sizes that met and did not fit, traced back to the values of the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vlmdoctor.evidence.failure import Failure
from vlmdoctor.evidence.shapes import Clash

_LIST = re.compile(r"\[(\d+(?:, ?\d+)+)\]")
_NUMBER = re.compile(r"(?<![\w.])(\d{2,})(?![\w.])")
_FEATURES = re.compile(r"\w*(feature|embeds)\w*")
# Sizes below this stand in too many places of a configuration to name one.
_TELLING = 16
_WIDTHS = re.compile(
    r"hidden|embed|dim|size|width|head|n_embd|d_model|section|channels|intermediate|vocab|token"
)


def clashes_of(failure: Failure, config: Any) -> tuple[Clash, ...]:
    """The sizes that met where `failure` was raised, with the configuration's names for them."""
    said = list(_values(config)) if config is not None else []
    features = [fact for fact in failure.values if _FEATURES.fullmatch(fact.name) and len(fact.shape) > 1]
    widths = {fact.shape[-1]: fact.name for fact in reversed(features)}
    if len(widths) == 2:
        return tuple(
            Clash(what=name, number=width, said_by=_said_by(width, said)) for width, name in widths.items()
        )
    found: list[Clash] = []
    for text in _LIST.findall(failure.message):
        sizes = [int(part) for part in text.split(",")]
        paths = tuple(path for path, value in said if value == sizes)
        if paths:
            found.append(Clash(what="", number=sizes, said_by=paths))
    for text in dict.fromkeys(_NUMBER.findall(_LIST.sub("", failure.message))):
        if int(text) >= _TELLING and (paths := _said_by(int(text), said)):
            found.append(Clash(what="", number=int(text), said_by=paths))
    return tuple(found[:4])


def _said_by(number: int, said: list[tuple[str, Any]]) -> tuple[str, ...]:
    return tuple(path for path, value in said if value == number and _WIDTHS.search(path))[:3]


def _values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values, dict):
        return
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{name}.")
        elif isinstance(value, int | list) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
