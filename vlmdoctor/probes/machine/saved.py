"""Snapshots as JSON, and whatever else people paste: distinguished, and read into the same snapshot."""

from __future__ import annotations

import codecs
import collections.abc
import dataclasses
import html
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

from vlmdoctor import boundary
from vlmdoctor.errors import UserError
from vlmdoctor.evidence.environment import Environment

SCHEMA_VERSION = 1
LARGEST = 50_000_000
_MOST = 2**63
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COLOURS = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_TAGS = re.compile(r"</?(?:details|summary|pre|code|p|br|div|span|b|tt)\b[^<>\n]{0,200}>", re.IGNORECASE)


def as_json(environment: Environment) -> str:
    """The snapshot as JSON, as `--save` writes it."""
    return json.dumps({"vlmdoctor_snapshot": SCHEMA_VERSION, **plain_facts(environment)}, indent=1) + "\n"


def plain_facts(environment: Environment) -> dict[str, Any]:
    """The snapshot as plain values, without what is not known."""

    def known(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
            return {name: known(item) for name, item in pairs if item is not None}
        if isinstance(value, tuple | list):
            return [known(item) for item in value]
        if isinstance(value, collections.abc.Mapping):
            return {str(name): known(item) for name, item in value.items()}
        return value

    return known(environment)


def load(path: Path) -> Environment:
    """The snapshot in a file: our own, a report of collect_env (torch's or vLLM's), or nvidia-smi's XML.

    Raises:
        UserError: The file can't be read or is nothing of that kind.
    """
    return understand(decoded(boundary.read_bytes(path, LARGEST)), str(path))


def understand(text: str, name: str) -> Environment:
    """The snapshot in a text; `name` is what errors call it."""
    from vlmdoctor.probes.machine import collect_env, nvidia_smi

    start = text.find("{")
    if '"vlmdoctor_snapshot"' in text or text.lstrip().startswith("{"):
        # Out of the middle of an issue, with marks of code around it.
        return _snapshot(text[start : text.rfind("}") + 1 or None], name)
    if "<nvidia_smi_log" in text:
        return nvidia_smi.read(text, name)
    if collect_env.is_report(text):
        return collect_env.read(text)
    raise UserError(
        f"{name} is neither a snapshot (check-env --save), nor a report of torch.utils.collect_env, "
        f"nor the output of 'nvidia-smi -q -x'."
    )


def decoded(data: bytes) -> str:
    """The text of a file as people save and paste it: PowerShell's UTF-16, colours of a terminal, HTML."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None:
        # Without a mark, every second byte of English in UTF-16 is zero.
        half = len(data) // 4
        encoding = "utf-16-le" if half and data[1::2].count(0) > half else "utf-8"
        encoding = "utf-16-be" if half and data[::2].count(0) > half else encoding
    text = data.decode(encoding, errors="replace").lstrip("\ufeff").replace("\0", "")
    text = _COLOURS.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    if not text.lstrip().startswith("{") and "<nvidia_smi_log" not in text:
        text = html.unescape(_TAGS.sub("\n", text))
    return text


def _snapshot(text: str, name: str) -> Environment:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{name} is not valid JSON; write it again with check-env --save.") from None
    version = values.pop("vlmdoctor_snapshot", None)
    if not isinstance(version, int):
        raise UserError(f"{name} is JSON, but no snapshot of vlmdoctor; write one with check-env --save.")
    if version > SCHEMA_VERSION:
        raise UserError(f"{name} was written by a newer vlmdoctor (snapshot {version}); update this one.")
    found = built(Environment, values)
    if found.origin == "this machine":
        found = dataclasses.replace(found, origin="a saved snapshot")
    return found


def built(kind: Any, value: Any, place: str = "the snapshot") -> Any:
    """`value`, as JSON gives it, as an instance of `kind`; fields that are not known are left out.

    Raises:
        UserError: A value is not of the type that its field has.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{place} must be an object.")
        hints = typing.get_type_hints(kind)
        return kind(**{n: built(hints[n], v, f"{place}: {n}") for n, v in value.items() if n in hints})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None:
            return None
        return built(next(a for a in arguments if a is not types.NoneType), value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{place} must be a list.")
        return tuple(built(arguments[0], item, place) for item in value)
    if origin is collections.abc.Mapping:
        if not isinstance(value, dict):
            raise UserError(f"{place} must be an object.")
        return {name: built(arguments[1], item, f"{place}: {name!r}") for name, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST:
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{place} must be of the type {kind.__name__}.")
    if isinstance(value, int | float) and not abs(value) < _MOST:
        raise UserError(f"{place} is a number that no machine has.")
    return value
