"""Snapshots for `check-env`: saved ones, collect_env's reports, nvidia-smi's XML, damaged and foreign."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.hostile.harness.mutate import (
    dumped,
    mutated,
    spoiled_bytes,
    spoiled_lines,
    spoiled_text,
    value,
)
from benchmarks.hostile.harness.texts import text, utf8
from benchmarks.hostile.harness.trial import Content, Fifo, Folder, Link, Sparse, Trial, numbered

NAME = "snapshots"

# Reports and snapshots of real kinds of machines, which the tests of `check-env` use as well.
_MACHINES = Path(__file__).parents[2] / "tests/vlmdoctor/machines"
_XML = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log><driver_version>550.54.14</driver_version><cuda_version>12.4</cuda_version>
<attached_gpus>1</attached_gpus><gpu id="00000000:01:00.0"><product_name>{}</product_name>
<uuid>GPU-{}</uuid><fb_memory_usage><total>{}</total><used>1 MiB</used><free>1 MiB</free></fb_memory_usage>
<temperature><gpu_temp>{}</gpu_temp></temperature></gpu></nvidia_smi_log>
"""
_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b0 "hostile">'
    + "".join("<!ENTITY b{} '{}'>".format(i, f"&b{i - 1};" * 10) for i in range(1, 12))
    + "]><nvidia_smi_log><driver_version>&b11;</driver_version></nvidia_smi_log>"
)
_OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'
    "<nvidia_smi_log><driver_version>&b;</driver_version></nvidia_smi_log>"
)
_FORMATS = ("full", "json", "html", "sarif", "junit", "markdown", "github", "concise")


@functools.cache
def machines() -> dict[str, bytes]:
    """The known reports by name."""
    return {path.name: path.read_bytes() for path in sorted(_MACHINES.iterdir())}


def inputs(seed: int, count: int) -> Iterator[Trial]:
    """Snapshots from a seed."""
    return numbered(NAME, _one, seed, count)


def _one(rng: random.Random, index: int) -> Trial:
    name = rng.choice(list(machines()))
    files: dict[str, Content] = {"in/snapshot": _content(rng, name)}
    argv = ["check-env", "--from", "snapshot"]
    match rng.randrange(8):
        case 0:
            files["in/other"] = machines()[name]
            argv = ["check-env", "--diff", "snapshot", "other"]
        case 1:
            argv.append("--paste")
        case 2:
            argv += ["--save", "../out/saved", "--quiet"]
        case 3:
            argv += [
                "--require",
                rng.choice(("gpu", "bf16", "vram=40GB", "cuda=12.8", "disk=1TB,memory=1GB")),
            ]
        case 4:
            argv.append("-v")
        case _:
            argv += ["--output-format", rng.choice(_FORMATS)]
    return Trial(f"a snapshot like {name}", tuple(argv), files, env={"GITHUB_ACTIONS": "true"})


def _content(rng: random.Random, name: str) -> Content:
    raw = machines()[name]
    match rng.randrange(10):
        case 0:
            return spoiled_bytes(rng, raw)
        case 1:
            return spoiled_text(rng, raw)
        case 2:
            made = _XML.format(text(rng), text(rng), text(rng), text(rng))
            return rng.choice((utf8(made), _BOMB.encode(), _OUTSIDE.encode(), spoiled_lines(rng, utf8(made))))
        case 3:
            odd = (
                Fifo(),
                Link("/dev/zero"),
                Link("snapshot"),
                Folder(),
                Sparse(49_000_000, raw),
                Sparse(1 << 33, raw),
            )
            return rng.choice(odd)
        case 4:
            return dumped(
                rng,
                {"vlmdoctor_snapshot": rng.choice((1, 1, 0, -1, True, 2, "1", None)), text(rng): value(rng)},
            )
        case _ if name.endswith(".json"):
            return dumped(rng, mutated(rng, json.loads(raw), rng.choice((1, 1, 2, 10))))
        case _:
            return spoiled_lines(rng, raw)
