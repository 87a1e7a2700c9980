"""Makes something that is nearly right out of something that is right: JSON values and bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from benchmarks.hostile.harness.texts import text

_NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 255, 65536, 2**31 - 1, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 10**400),
    *(0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")),
)
_SHAPES: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    [],
    {},
    [[]],
    [None],
    {"": None},
    [0] * 50,
    "1",
    "true",
    "null",
)
_DEEP = 100_000


def value(rng: random.Random) -> Any:
    """Any value that JSON, as Python writes it, can hold."""
    match rng.randrange(5):
        case 0:
            return rng.choice(_NUMBERS)
        case 1:
            return copy.deepcopy(rng.choice(_SHAPES))
        case 2:
            return text(rng)
        case 3:
            return [value(rng) for _ in range(rng.randrange(4))]
        case _:
            return {text(rng): value(rng) for _ in range(rng.randrange(3))}


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a tree."""
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    for key, inner in items:
        yield tree, key
        yield from places(inner)


def mutated(rng: random.Random, tree: Any, times: int = 1) -> Any:
    """A copy of `tree` in which so many values, keys or types are others."""
    tree = copy.deepcopy(tree)
    for _ in range(times):
        found = list(places(tree))
        if not found:
            return value(rng)
        container, key = rng.choice(found)
        _change(rng, container, key)
    return tree


def _change(rng: random.Random, container: Any, key: Any) -> None:
    old = container[key]
    match rng.randrange(10):
        case 0:
            del container[key]
        case 1:
            container[key] = [old]
        case 2:
            container[key] = {"a": old}
        case 3 if isinstance(old, int | float) and not isinstance(old, bool):
            container[key] = rng.choice((-old, old * 2, old + 1, old % 7 + 0.5, str(old), old * 10**9, 0))
        case 4 if isinstance(container, dict):
            container[text(rng)] = container.pop(key)
        case 5 if isinstance(old, list | dict) and old:
            container[key] = type(old)()
        case 6 if isinstance(old, list) and old:
            container[key] = old * rng.choice((2, 50))
        case _:
            container[key] = value(rng)


def dumped(rng: random.Random, tree: Any) -> bytes:
    """A tree as the bytes of a file, at times with what parsers trip over."""
    try:
        written = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    except (ValueError, RecursionError):
        written = "{}"
    raw = written.encode("utf-8", "surrogatepass")
    return spoiled_text(rng, raw) if rng.random() < 0.2 else raw


def spoiled_text(rng: random.Random, raw: bytes) -> bytes:
    """The bytes of a text with one thing wrong that has to do with how it is written."""
    middle = rng.randrange(len(raw) + 1)
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")")))
    depth = rng.choice((900, 3000, _DEEP))
    choices = (
        b"",
        raw[:middle],
        raw + raw,
        b"\xef\xbb\xbf" + raw,
        raw.decode("utf-8", "replace").encode("utf-16"),
        raw.decode("utf-8", "replace").encode("utf-32"),
        raw[:middle] + b"\x00" + raw[middle:],
        raw[:middle] + b"\xff\xfe\xc0\x80" + raw[middle:],
        raw[:middle] + b"\xed\xa0\x80" + raw[middle:],
        raw[:middle] + bytes(rng.randrange(256) for _ in range(8)) + raw[middle:],
        opened * depth + closed * depth,
        opened * depth,
        raw.replace(b":", b": " + opened * depth + b"1" + closed * depth + b', "b":', 1),
        raw.replace(b": ", b": " + b"1" * 5000 + b', "a": ', 1),
        raw.replace(b"\n", b"\r"),
        b" " * 1_000_000 + raw,
        raw * max(1, 400_000 // (len(raw) + 1)),
    )
    return rng.choice(choices)


def spoiled_bytes(rng: random.Random, raw: bytes) -> bytes:
    """Bytes with some of them changed, cut out, doubled or inserted."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 1, 4, 8, 100))
        match rng.randrange(5):
            case 0:
                data[at : at + size] = bytes(rng.randrange(256) for _ in range(size))
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size]
            case 3:
                data[at : at + size] = rng.choice((b"\x00", b"\xff", b"\x80")) * size
            case _:
                del data[at:]
    return bytes(data)


def spoiled_lines(rng: random.Random, raw: bytes) -> bytes:
    """The lines of a text with some left out, doubled, exchanged, cut, or with a hostile text in them."""
    lines = raw.split(b"\n")
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(lines))
        line = lines[at]
        cut = rng.randrange(len(line) + 1)
        match rng.randrange(7):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(at, line)
            case 2:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = line[:cut]
            case 4:
                start, _, _ = line.partition(b":")
                lines[at] = start + b": " + text(rng).encode("utf-8", "surrogatepass")
            case 5:
                lines[at] = (line * 2000)[:500_000] if len(line) < 10_000 else line
            case _:
                lines[at] = line[:cut] + text(rng).encode("utf-8", "surrogatepass") + line[cut:]
    return b"\n".join(lines)
