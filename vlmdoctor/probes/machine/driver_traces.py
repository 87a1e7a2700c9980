"""What the driver leaves in the system: errors in the kernel's log, open device files, the socket of MPS."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from vlmdoctor.evidence.environment.facts import Gpu, Mps, Process, Xid
from vlmdoctor.knowledge.xid import HARDWARE
from vlmdoctor.sandbox import reading

_XID = re.compile(r"NVRM: Xid \(PCI:([\w:.]{1,20})\): (\d{1,4}),? ?(.{0,120})")
_LOG = 4_000_000
# Those that watch GPUs have their files open, and no memory in use.
_WATCHERS = ("nvidia-", "nv-", "dcgm", "nvtop", "nvitop", "gpustat", "Xorg", "Xwayland", "gnome-shell")
_PATIENCE = 0.5


def xids(root: Path) -> tuple[Xid, ...]:
    """What the kernel's log tells of failing GPUs since the machine was started, where it can be read."""
    found: dict[tuple[str, int], Xid] = {}
    for bus, code, text in _XID.findall(_kernel_log(root / "dev/kmsg")):
        if int(code) in HARDWARE:
            found.setdefault((bus, int(code)), Xid(code=int(code), bus=bus, text=text.strip()))
    return tuple(found.values())


def _kernel_log(path: Path) -> str:
    parts: list[bytes] = []
    size = 0
    try:
        stream = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return ""
    try:
        while size < _LOG:
            try:
                # Each read gives one line; at the end it would wait for the next one, and fails instead.
                part = os.read(stream, 8192)
            except BrokenPipeError:
                continue  # the line was overwritten meanwhile; the next read goes on behind the gap
            if not part:
                break
            parts.append(part)
            size += len(part)
    except OSError:
        pass
    finally:
        os.close(stream)
    return b"".join(parts).decode("utf-8", errors="replace")


def mps(root: Path, environ: Mapping[str, str], contained: bool) -> Mps | None:
    """The multi-process service that CUDA_MPS_PIPE_DIRECTORY asks for; None where it asks for none."""
    folder = environ.get("CUDA_MPS_PIPE_DIRECTORY", "")
    # Naming /dev/null is the way to keep a program from using MPS.
    if not folder.startswith("/") or folder.startswith("/dev/null"):
        return None
    control = reading.exists(root / folder.lstrip("/") / "control")
    runs = None if contained or not reading.exists(root / "proc/self") else False
    if runs is False:
        comms = reading.matching(root / "proc", "[0-9]*/comm")
        runs = any(reading.text(path).startswith("nvidia-cuda-mps") for path in comms)
    return Mps(folder=folder, control=control, daemon=runs)


def holders(root: Path, gpus: tuple[Gpu, ...]) -> dict[int, tuple[Process, ...]]:
    """Index of a GPU -> programs that have its device file open, as far as this user may look."""
    minors = {minor(root, gpu, index): index for index, gpu in enumerate(gpus)}
    found: dict[int, list[Process]] = {}
    until = time.monotonic() + _PATIENCE
    try:
        pids = [entry.name for entry in os.scandir(root / "proc") if entry.name.isdecimal()]
    except OSError:
        return {}
    for pid in pids:
        if time.monotonic() > until:
            break
        for index in sorted(_opened(root / "proc" / pid / "fd", minors)):
            name = reading.text(root / "proc" / pid / "comm").strip()
            if not name.startswith(_WATCHERS):
                found.setdefault(index, []).append(Process(pid=int(pid[:9]), name=name))
    return {index: tuple(programs) for index, programs in found.items()}


def _opened(folder: Path, minors: Mapping[int, int]) -> set[int]:
    found = set()
    try:
        for entry in os.scandir(folder):
            match = re.fullmatch(r"/dev/nvidia(\d{1,3})", str(Path(entry.path).readlink()))
            if match and int(match[1]) in minors:
                found.add(minors[int(match[1])])
    except OSError:
        pass
    return found


def minor(root: Path, gpu: Gpu, index: int) -> int:
    """The number of the GPU's device file."""
    bus = (gpu.bus or "").lower()
    # NVML writes the domain with eight digits, the files of the driver with four.
    for name in dict.fromkeys((bus, bus[4:])):
        information = reading.text(root / "proc/driver/nvidia/gpus" / name / "information") if name else ""
        number = re.search(r"^Device Minor:\s*(\d+)", information, re.MULTILINE)
        if number:
            return int(number[1])
    return index
