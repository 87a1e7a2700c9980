"""Changes of files that only a base has, and so are made where the base is: in the worker."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.hostile.harness.mutate import (
    dumped,
    mutated,
    spoiled_bytes,
    spoiled_lines,
    spoiled_text,
    value,
)
from benchmarks.hostile.harness.texts import text


def edited(how: str, seed: int, path: Path) -> bytes:
    """The content of a file changed in the way that is named."""
    if how == "manifest":
        return _manifest(path.parent)
    way, _, argument = how.partition(":")
    if way in _WAYS_WITH_TEXT:
        return _WAYS_WITH_TEXT[way](argument, path.read_bytes())
    return _WAYS[way](random.Random(seed), path.read_bytes())


def _manifest(folder: Path) -> bytes:
    """A manifest that agrees with the files as they are now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    found = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }
    return json.dumps(found).encode()


def _json(rng: random.Random, raw: bytes) -> bytes:
    return dumped(rng, mutated(rng, json.loads(raw), rng.choice((1, 1, 3))))


def _rows(rng: random.Random, raw: bytes) -> bytes:
    """Rows of JSON, some of them with a wrong value."""
    rows = raw.decode().splitlines()
    for _ in range(rng.choice((1, 2, 10))):
        at = rng.randrange(len(rows))
        try:
            row = mutated(rng, json.loads(rows[at]))
            rows[at] = json.dumps(row)
        except ValueError:
            continue
    return "\n".join(rows).encode()


def _split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def _join(written: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(written)) + written + data


def _header(rng: random.Random, raw: bytes) -> bytes:
    header, data = _split(raw)
    return _join(dumped(rng, mutated(rng, header, rng.choice((1, 3)))), data)


def _names(rng: random.Random, raw: bytes) -> bytes:
    """Tensors under other names; all else is right."""
    header, data = _split(raw)
    for name in rng.sample(list(header), min(len(header), rng.choice((1, 3, 40)))):
        if name != "__metadata__":
            header[f"{name.rpartition('.')[0]}.{text(rng)}" if rng.random() < 0.5 else text(rng)] = (
                header.pop(name)
            )
    written = json.dumps(header, ensure_ascii=False).encode("utf-8", "replace")
    return _join(written, data)


def _state(rng: random.Random, raw: bytes) -> bytes:
    """A training state that is well formed and wrong."""
    import torch

    state = torch.load(io.BytesIO(raw), weights_only=True)
    key = rng.choice(list(state))
    match rng.randrange(5):
        case 0:
            del state[key]
        case 1:
            state[key] = value(rng)
        case 2 if isinstance(state[key], dict):
            state[key] = mutated(rng, state[key], 3)
        case 3:
            state["config"] = mutated(rng, state["config"], rng.choice((1, 3)))
        case 4:
            state = rng.choice(([], None, {}, 5, {"step": 3}, torch.zeros(3)))
        case _:
            for one in state["optimizer"]["state"].values():
                one["exp_avg"] = rng.choice((torch.zeros(1), torch.zeros(0), None, "x", torch.zeros(2, 2, 2)))
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


_WAYS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "bytes": spoiled_bytes,
    "text": spoiled_text,
    "lines": spoiled_lines,
    "json": _json,
    "rows": _rows,
    "header": _header,
    "names": _names,
    "state": _state,
}


def _named(name: str, raw: bytes) -> bytes:
    """The first few tensors under this name, below where they are or instead of it."""
    header, data = _split(raw)
    names = [key for key in header if key != "__metadata__"][:3]
    for number, old in enumerate(names):
        header[f"{old.rpartition('.')[0]}.{name}" if number else name] = header.pop(old)
    header.setdefault("__metadata__", {"format": "pt"})
    return _join(json.dumps(header).encode(), data)


def _texts(text: str, raw: bytes) -> bytes:
    """Every text in the JSON is this one; keys as they are."""

    def changed(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: changed(inner) for key, inner in tree.items()}
        if isinstance(tree, list):
            return [changed(inner) for inner in tree]
        return text if isinstance(tree, str) else tree

    return json.dumps(changed(json.loads(raw))).encode()


_WAYS_WITH_TEXT: dict[str, Callable[[str, bytes], bytes]] = {
    "named": _named,
    "texts": _texts,
    "append": lambda text, raw: raw + text.encode() + b"\n",
}
