"""A full disk or too little memory while `check` trains: no weight may change (Linux; the mounts need root).

    python benchmarks/hostile/full_disk.py

Each case checks a model of 96 MiB with its optimizer in its own process: with `TMPDIR` on file systems of
six sizes in memory (as they are, and taken for disks), under limits on files and on memory. It compares every
weight, bit for bit, and prints tried and failed. Where nothing may be mounted, those cases are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

SIZES = (0, 1, 32, 95, 97, 128)  # MiB; the weights take 96 and a little
CHILD = """
import resource, sys, zlib
import torch
from torch import nn
import vlmdoctor
from vlmdoctor.sandbox import kept_file

kind, limit = sys.argv[1], int(sys.argv[2])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_encoder = nn.Linear(16, 64)
        self.embed = nn.Embedding(393_216, 64)
        self.lm_head = nn.Linear(64, 16)

    def forward(self, pixel_values, labels):
        hidden = self.vision_encoder(pixel_values) + self.embed(labels)
        return {"loss": nn.functional.cross_entropy(self.lm_head(hidden), labels)}


def bits():
    return [zlib.crc32(parameter.detach().numpy()) for parameter in model.parameters()]


torch.manual_seed(0)
model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
batch = {"pixel_values": torch.randn(8, 16), "labels": torch.arange(8)}
before = bits()
if kind == "disk":
    kept_file.in_memory = lambda folder: False
if kind == "file size":
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if kind == "memory":
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
try:
    vlmdoctor.check(model, batch, optimizer=optimizer)
finally:
    print("same" if bits() == before else "changed", flush=True)
"""


def cases() -> Iterator[tuple[str, Callable[[], bool]]]:
    """(a name, what gives whether every weight was afterwards what it had been)."""
    for size in SIZES:
        for kind in ("disk", "tmpfs"):
            if os.geteuid() == 0 and _can_mount():
                yield f"{kind} of {size} MiB", lambda kind=kind, size=size: _on_small(kind, size)
        yield f"files of {size} MiB", lambda size=size: _checked("file size", size << 20)
        yield f"{size} MiB more memory", lambda size=size: _checked("memory", size << 20)


def _on_small(kind: str, size: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        options = f"size={max(size, 1) << 20}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        try:
            if size == 0:  # not a byte is left
                filler = Path(folder) / "filler"
                filler.write_bytes(bytes(1 << 20))
            return _checked(kind, 0, folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        try:
            mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False
        if mounted:
            subprocess.run(["umount", folder], check=True)
        return mounted


def _checked(kind: str, limit: int, folder: str | None = None) -> bool:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"TMPDIR": folder} if folder else {})
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind, str(limit)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    return done.stdout.splitlines()[-1:] == ["same"]


def main() -> int:
    """Tries all of them; how many failed."""
    failed = 0
    tried = 0
    for name, holds in cases():
        tried += 1
        held = holds()
        failed += not held
        print(f"{'ok' if held else 'CHANGED':8} {name}", flush=True)
    print(f"full disk: {tried} tried, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
