"""Safetensors files and their indexes: headers that lie, names that mislead, files that are not there."""

from __future__ import annotations

import json
import pickle
import random
import struct
from collections.abc import Iterator
from typing import Any

from benchmarks.hostile.harness.bases import MODEL, TEXT_MODEL
from benchmarks.hostile.harness.mutate import dumped, mutated, spoiled_text
from benchmarks.hostile.harness.texts import TEXTS, text
from benchmarks.hostile.harness.trial import Base, Content, Edit, Fifo, Folder, Link, Sparse, Trial, numbered

NAME = "safetensors"

_DTYPES = ("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X", "", None, 5)
_BAIT = "bait/secret.safetensors"


def inputs(seed: int, count: int) -> Iterator[Trial]:
    """Files of weights from a seed."""
    return numbered(NAME, _one, seed, count)


class _Pickle:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("EXECUTED", "w"))


PICKLE = pickle.dumps(_Pickle(), protocol=2)


def _one(rng: random.Random, index: int) -> Trial:
    base = rng.choice((MODEL, TEXT_MODEL))
    files: dict[str, Content] = {
        "in/model": Base(base),
        _BAIT: safetensors({"a": ("F32", [1], [0, 4])}, b"\0" * 4),
    }
    file = "in/model/model.safetensors"
    match rng.randrange(9):
        case 0:
            files[file] = Edit("bytes", rng.randrange(2**32))
        case 1:
            files[file] = Edit("header", rng.randrange(2**32))
        case 2:
            files[file] = Edit("names", rng.randrange(2**32))
        case 3:
            files[file] = _header_alone(rng)
        case 4:
            files[file] = _lie(rng)
        case 5:
            files |= {file: None, **_index(rng)}
        case 6:
            files[file] = rng.choice(
                (
                    Fifo(),
                    Link("/dev/zero"),
                    Link("../../bait/secret.safetensors"),
                    Link("model.safetensors"),
                    Folder(),
                )
            )
        case 7:
            files[file] = Sparse(rng.choice((100, 10**9, 6 << 30)), _header_alone(rng))
        case _:
            files[file] = None
            name = rng.choice(("pytorch_model.bin", "model.bin", "adapter_model.bin", "training_args.bin"))
            files[f"in/model/{name}"] = PICKLE
            if rng.random() < 0.5:
                files[f"in/model/{name}.index.json"] = dumped(rng, {"weight_map": {"a": name}})
    depth = rng.choice(("static", "static", "shapes", "forward"))
    form = rng.choice(("full", "json", "html", "junit", "github", "sarif", "markdown", "concise"))
    argv = ["check", "model", "--depth", depth, "--output-format", form]
    if rng.random() < 0.1:
        argv = ["look", "model"]
    return Trial("a file of weights", tuple(argv), files, env={"GITHUB_ACTIONS": "true"})


def safetensors(header: Any, data: bytes) -> bytes:
    """The bytes of a file with this header; entries may be (dtype, shape, offsets)."""
    plain = {
        name: {"dtype": entry[0], "shape": entry[1], "data_offsets": entry[2]}
        if isinstance(entry, tuple)
        else entry
        for name, entry in header.items()
    }
    written = json.dumps(plain).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(written)) + written + data


def _header_alone(rng: random.Random) -> bytes:
    """A header about tensors of which the file has nothing, or too little."""
    header: dict[str, Any] = {}
    at = 0
    for _ in range(rng.choice((0, 1, 3, 20, 3000))):
        shape = [
            rng.choice((0, 1, 2, 48, -1, 2**31, 2**62, 10**20, 1.5, "x", None))
            for _ in range(rng.randrange(4))
        ]
        size = rng.choice((0, 4, 8, 100, -4, 2**63))
        offsets = rng.choice(
            ([at, at + size], [at + size, at], [0, 4], [at], [], None, ["0", "4"], [2**64, 2**65])
        )
        header[text(rng)] = rng.choice(((rng.choice(_DTYPES), shape, offsets), None, [], 5, {}))
        at += max(0, size)
    if rng.random() < 0.5:
        header["__metadata__"] = rng.choice(
            (
                {"format": "pt"},
                {"format": "tf"},
                {"format": "\x1b[2J"},
                {"format": 5},
                [],
                None,
                {},
                {text(rng): text(rng)},
            )
        )
    return safetensors(header, b"\0" * rng.choice((0, 4, 100)))


def _lie(rng: random.Random) -> bytes:
    """A length of the header that is not its length, or a header that is no JSON."""
    right = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    length = rng.choice((0, 1, len(right) - 1, len(right) + 1, 10**6, 10**9, 2**31, 2**63, 2**64 - 1))
    body = right if rng.random() < 0.5 else spoiled_text(rng, right)
    if rng.random() < 0.4:
        length = len(body)
    return struct.pack("<Q", length) + body + b"\0" * 4


def _index(rng: random.Random) -> dict[str, Content]:
    """An index whose files are elsewhere, missing, pickles, or pipes."""
    name = rng.choice(
        (
            *(
                "../../bait/secret.safetensors",
                "/etc/passwd",
                "/dev/zero",
                "model-00001-of-00001.safetensors",
            ),
            *("part.bin", "fifo.safetensors", "", ".", "..", "config.json", "a\0b", "x" * 300, None, 5, []),
            *(
                "model.safetensors.index.json",
                "hostile/repo",
                "http://hostile.invalid/a.safetensors",
                rng.choice(TEXTS),
            ),
        )
    )
    names = ["lm_head.weight", "model.embed_tokens.weight", text(rng), text(rng)]
    index: Any = {
        "metadata": {"total_size": rng.choice((0, 10**20, -1, "x", None))},
        "weight_map": dict.fromkeys(names, name),
    }
    if rng.random() < 0.4:
        index = mutated(rng, index, rng.choice((1, 3)))
    one = ("F32", [1], [0, 4])
    return {
        "in/model/model.safetensors.index.json": dumped(rng, index),
        "in/model/part.bin": PICKLE,
        "in/model/fifo.safetensors": Fifo(),
        "in/model/model-00001-of-00001.safetensors": safetensors(dict.fromkeys(names[:2], one), b"\0" * 4),
    }
