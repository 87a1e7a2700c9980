"""What the machine or the container allows: processors, memory, shared memory, open files, disks."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

from vlmdoctor.evidence.environment.facts import Folder, Host
from vlmdoctor.sandbox import reading
from vlmdoctor.sandbox.memory import control_groups, memory_of

_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3, "": 1}


def read(root: Path, environ: Mapping[str, str], work: Path | None) -> Host:
    """The limits of the machine under `root`; `work` is the folder that a run would write to, if any."""
    groups = control_groups(root)
    memory, available = memory_of(root, groups)
    size, free = _shm(root)
    soft, hard = _open_files(root)
    headers = sysconfig.get_paths().get("include")
    return Host(
        cpus=_cpus(root),
        quota=_quota(groups),
        memory=memory,
        available=available,
        shm=size,
        shm_free=free,
        open_files=soft,
        open_files_hard=hard,
        compiler=any(shutil.which(name, path=environ.get("PATH", "")) for name in ("cc", "gcc", "g++", "cl")),
        nvcc=_has_nvcc(root, environ),
        python_headers=reading.exists(Path(headers) / "Python.h") if headers else None,
        folders=tuple(_folders(root, environ, work)),
    )


def _cpus(root: Path) -> int:
    allowed = re.search(r"^Cpus_allowed_list:\s*([\d,-]+)", reading.text(root / "proc/self/status"), re.M)
    if allowed:
        ranges = (part.split("-") for part in allowed[1].split(",") if part)
        count = sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges if all(end.isdigit() for end in ends))
        if count > 0:
            return count
    return os.cpu_count() or 1


def _quota(groups: list[Path]) -> float | None:
    found = []
    for group in groups:
        allowed = reading.text(group / "cpu.max").split()
        if not allowed:
            allowed = [reading.text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(allowed) == 2 and all(part.isdigit() for part in allowed) and int(allowed[1]):
            found.append(int(allowed[0]) / int(allowed[1]))
    return min(found, default=None)


def _shm(root: Path) -> tuple[int | None, int | None]:
    if root == Path("/"):
        if not os.path.ismount("/dev/shm"):
            return None, None
        try:
            found = os.statvfs("/dev/shm")
        except OSError:
            return None, None
        return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    mounted = re.search(
        r"^\S+ /dev/shm tmpfs \S*?size=(\d+)([kmg]?)", reading.text(root / "proc/mounts"), re.M
    )
    return (int(mounted[1]) * _UNITS[mounted[2]], None) if mounted else (None, None)


def _open_files(root: Path) -> tuple[int | None, int | None]:
    limits = re.search(r"^Max open files\s+(\S+)\s+(\S+)", reading.text(root / "proc/self/limits"), re.M)
    if not limits:
        return None, None
    soft, hard = (int(value) if value.isdigit() else None for value in limits.groups())
    return soft, hard


def _has_nvcc(root: Path, environ: Mapping[str, str]) -> bool:
    home = environ.get("CUDA_HOME") or environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc", path=environ.get("PATH", "")) is not None or reading.exists(
        root / home.lstrip("/") / "bin/nvcc"
    )


def _folders(root: Path, environ: Mapping[str, str], work: Path | None) -> Iterator[Folder]:
    home = environ.get("HOME") or _home()
    cache = environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    hub = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    hub = hub or f"{environ.get('HF_HOME') or f'{cache}/huggingface'}/hub"
    uses = {
        **({"work": str(work)} if work is not None else {}),
        "hub cache": hub,
        "datasets cache": environ.get("HF_DATASETS_CACHE")
        or f"{environ.get('HF_HOME') or f'{cache}/huggingface'}/datasets",
        "temporary files": environ.get("TMPDIR") or "/tmp",
        "triton cache": environ.get("TRITON_CACHE_DIR") or f"{home}/.triton",
    }
    for use, path in uses.items():
        if path.startswith("~"):
            path = home + path[1:]
        yield folder(root, use, path)


def _home() -> str:
    try:
        return str(Path.home())
    except (RuntimeError, KeyError):
        return "/"  # a user without an entry, as in containers


def folder(root: Path, use: str, path: str) -> Folder:
    """The folder with the room on the disk that it is on, or that its nearest existing parent is on."""
    path = path or "."
    # Links are followed before the disk is looked at: a cache is often a link to another volume.
    place = Path(os.path.realpath(root / path.lstrip("/") if path.startswith("/") else Path(path)))
    while not reading.exists(place) and place != place.parent:
        place = place.parent
    shown = str(place)
    if root != Path("/"):
        shown = "/" + os.path.relpath(place, os.path.realpath(root)) if shown.startswith(str(root)) else shown
    try:
        found = os.statvfs(place)
    except (OSError, AttributeError):
        return Folder(use=use, path=path, resolved=shown)
    return Folder(
        use=use,
        path=path,
        resolved=shown,
        free=found.f_bavail * found.f_frsize,
        total=found.f_blocks * found.f_frsize,
        inodes=found.f_favail if found.f_files else None,
        writable=os.access(place, os.W_OK),
    )
