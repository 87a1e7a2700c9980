"""The memory that the machine or its container has for this process, read from Linux's own files."""

from __future__ import annotations

import re
from pathlib import Path

from vlmdoctor.sandbox import reading


def free_memory(root: Path) -> int | None:
    """Bytes of memory that this process may still take, by the machine and its control groups; None where
    neither says."""
    return memory_of(root, control_groups(root))[1]


def control_groups(root: Path) -> list[Path]:
    """The folders of the control groups that this process is in, the innermost first."""
    base = root / "sys/fs/cgroup"
    found = []
    for line in reading.text(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if ".." in path:
            continue
        for mount in (base / controllers, base / controllers.split(",")[0], base):
            place = mount / path.lstrip("/")
            while place != mount:
                found.append(place)
                place = place.parent
            found.append(mount)
    return list(dict.fromkeys([*found, base, base / "cpu", base / "memory"]))


def memory_of(root: Path, groups: list[Path]) -> tuple[int | None, int | None]:
    """Bytes of memory that there are and that may still be taken, by the machine and these control groups."""
    values = {
        name: int(kilobytes) * 1024
        for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB", reading.text(root / "proc/meminfo"), re.M)
    }
    total, available = values.get("MemTotal"), values.get("MemAvailable")
    for group in groups:
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, now = reading.text(group / limit).strip(), reading.text(group / used).strip()
            # Version 1 writes a huge number where there is no limit.
            if most.isdigit() and total is not None and int(most) < total:
                total = int(most)
                # What is in use counts cached files, which give way: only a part of it is spoken for.
                cached = re.search(r"^(?:inactive_file|total_inactive_file) (\d+)", _stat(group), re.M)
                spoken = int(now) - (int(cached[1]) if cached else 0) if now.isdigit() else 0
                available = min(available or total, max(0, total - spoken))
    return total, available


def _stat(group: Path) -> str:
    return reading.text(group / "memory.stat")
