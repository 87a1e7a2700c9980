"""Healthy machines for the rules' examples, to be changed in one respect."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmdoctor.evidence.environment import Driver, Environment, Folder, Gpu, Host, Nvml, PciGpu, Torch

GIB = 1024**3
WHEEL = Torch(
    version="2.13.0+cu130", cuda="13.0", archs=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
)
CPU_WHEEL = Torch(version="2.13.0+cpu", archs=())
HOST = Host(
    cpus=16,
    memory=128 * GIB,
    available=120 * GIB,
    shm=64 * GIB,
    shm_free=64 * GIB,
    open_files=65536,
    open_files_hard=1048576,
    compiler=True,
    nvcc=False,
    python_headers=True,
    folders=(
        Folder(
            use="work",
            path="/work",
            resolved="/work",
            free=500 * GIB,
            total=1000 * GIB,
            inodes=10_000_000,
            writable=True,
        ),
    ),
)
NODES = ("nvidia-uvm", "nvidia0", "nvidia1", "nvidiactl")


def card(index: int = 0, **changes: Any) -> Gpu:
    """A healthy L40S."""
    healthy = Gpu(
        name="NVIDIA L40S",
        uuid=f"GPU-{index}f2e8c41-0000-0000-0000-000000000000",
        bus=f"00000000:{17 + index}:00.0",
        capability=(8, 9),
        memory=45 * GIB,
        used=GIB // 2,
        processes=(),
        compute_mode="default",
        mig=False,
        ecc_uncorrected=0,
        remap_pending=False,
        remap_failed=False,
        throttle=("idle",),
        link_width=16,
        link_width_max=16,
    )
    return dataclasses.replace(healthy, **changes)


def workstation(**changes: Any) -> Environment:
    """A machine with two L40S and a torch that fits them."""
    cards = changes.get("gpus", (card(0), card(1)))
    healthy = Environment(
        python="3.12.4",
        platform="Linux x86_64",
        kernel="6.8.0-45-generic",
        packages={"torch": WHEEL.version, "transformers": "5.23.0", "numpy": "2.4.6"},
        torch=WHEEL,
        gpus=cards,
        pci=tuple(
            PciGpu(bus=f"0000:{17 + i}:00.0", vendor="nvidia", driver="nvidia") for i in range(len(cards))
        ),
        driver=Driver(
            version="580.65.06",
            user_version="580.65.06",
            libcuda="/usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06",
            nodes=NODES,
        ),
        nvml=Nvml(cuda="13.0"),
        host=HOST,
    )
    return dataclasses.replace(healthy, **changes)


def laptop(**changes: Any) -> Environment:
    """A machine without a GPU, with a torch for the CPU."""
    healthy = Environment(
        python="3.12.4",
        platform="Linux x86_64",
        kernel="6.8.0-45-generic",
        packages={"torch": CPU_WHEEL.version, "numpy": "2.4.6"},
        torch=CPU_WHEEL,
        pci=(PciGpu(bus="0000:00:02.0", vendor="intel", driver="i915"),),
        nvml=Nvml(state="absent"),
        host=dataclasses.replace(HOST, cpus=8, memory=16 * GIB, available=9 * GIB, shm=8 * GIB),
    )
    return dataclasses.replace(healthy, **changes)
