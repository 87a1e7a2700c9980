"""GPUs and their drivers as /proc, /sys and /dev show them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from vlmdoctor.evidence.environment.facts import Driver, Gpu, PciGpu
from vlmdoctor.probes.machine.driver_traces import minor
from vlmdoctor.sandbox import reading

_VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
_VERSION = re.compile(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b")
# Where the loader looks for libcuda.so.1, after LD_LIBRARY_PATH.
_LIBRARY_FOLDERS = (
    *("usr/lib/wsl/lib", "usr/local/nvidia/lib64", "usr/local/nvidia/lib", "usr/lib/x86_64-linux-gnu"),
    *("usr/lib/aarch64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "lib64", "usr/lib", "usr/local/lib"),
    "run/opengl-driver/lib",
)


def gpus(root: Path, contained: bool = False) -> tuple[Gpu, ...]:
    """NVIDIA GPUs that programs here can reach: with their models where the driver's files tell them.

    Inside a container, `contained`, these files tell of the host's GPUs, whatever was passed in.
    """
    found = []
    for information in reading.matching(root / "proc/driver/nvidia/gpus", "*/information"):
        values = dict(re.findall(r"^([\w ]+?):[ \t]*(.*?)\s*$", reading.text(information), re.MULTILINE))
        uuid = values.get("GPU UUID", "")
        found.append(
            Gpu(
                name=values.get("Model") or "NVIDIA GPU",
                uuid=uuid if uuid.startswith("GPU-") and "?" not in uuid else None,
                bus=values.get("Bus Location") or information.parent.name,
            )
        )
    nodes = [name for name in _nodes(root) or () if re.fullmatch(r"nvidia\d+", name)]
    if contained and not nodes and reading.exists(root / "dev"):
        found = []
    if found and nodes and len(nodes) < len(found):
        found = [g for i, g in enumerate(found) if f"nvidia{minor(root, g, i)}" in nodes] or found
    if found:
        return tuple(found)
    if nodes:
        return tuple(Gpu() for _ in nodes)
    if reading.exists(root / "usr/lib/wsl/lib/libcuda.so.1") and reading.exists(root / "dev/dxg"):
        # WSL has neither: its GPUs are behind /dev/dxg and is not known apart from here.
        return (Gpu(name="NVIDIA GPU behind WSL"),)
    return ()


def _nodes(root: Path) -> tuple[str, ...] | None:
    if not reading.exists(root / "dev"):
        return None
    return tuple(path.name for path in reading.matching(root / "dev", "nvidia*"))


def pci(root: Path) -> tuple[PciGpu, ...] | None:
    """Display controllers and accelerators on the PCI bus; None where there is no such folder to read."""
    folder = root / "sys/bus/pci/devices"
    if not reading.exists(folder):
        return None
    found = []
    for device in reading.matching(folder, "*"):
        vendor = _VENDORS.get(reading.text(device / "vendor").strip())
        # Class 03 is a display controller, 12 a processing accelerator.
        if vendor is None or not reading.text(device / "class").startswith(("0x03", "0x12")):
            continue
        driver = device / "driver"
        iommu = reading.text(device / "iommu_group" / "type").strip() or None
        held = driver.resolve().name if reading.exists(driver) else None
        found.append(PciGpu(bus=device.name, vendor=vendor, driver=held, iommu=iommu))
    return tuple(found)


def driver(root: Path, environ: Mapping[str, str]) -> Driver | None:
    """The NVIDIA driver; None where there is no trace of one."""
    match = _VERSION.search(reading.text(root / "proc/driver/nvidia/version"))
    libcuda = _libcuda(root, environ)
    nodes = _nodes(root)
    modules = re.findall(r"^(nvidia\w*|nouveau|amdgpu) ", reading.text(root / "proc/modules"), re.MULTILINE)
    if not match and libcuda is None and not nodes and not any(m.startswith("nvidia") for m in modules):
        return None
    user = re.search(r"libcuda\.so\.(\d{3,4}\.\d+(?:\.\d+)?)$", libcuda or "")
    return Driver(
        version=match[1] if match else None,
        user_version=user[1] if user else None,
        libcuda=libcuda,
        nodes=nodes,
        modules=tuple(sorted(modules)),
        fabric_manager=_runs(root, "nv-fabricmanager") if nodes and "nvidia-nvswitchctl" in nodes else None,
    )


def _libcuda(root: Path, environ: Mapping[str, str]) -> str | None:
    folders = [
        Path(entry.lstrip("/"))
        for entry in environ.get("LD_LIBRARY_PATH", "").split(":")
        if entry.startswith("/")
    ]
    for folder in (*folders, *map(Path, _LIBRARY_FOLDERS)):
        path = root / folder / "libcuda.so.1"
        if reading.exists(path):
            real = os.path.realpath(path)
            base = os.path.realpath(root)
            return "/" + os.path.relpath(real, base) if base != "/" and real.startswith(base) else real
    return None


def management_library(root: Path, environ: Mapping[str, str]) -> bool:
    """Whether libnvidia-ml.so.1 can be found: where it can't, asking it is not worth a process."""
    folders = [entry.lstrip("/") for entry in environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    if any(reading.exists(root / folder / "libnvidia-ml.so.1") for folder in (*folders, *_LIBRARY_FOLDERS)):
        return True
    try:
        return b"libnvidia-ml.so.1" in (root / "etc/ld.so.cache").read_bytes()
    except OSError:
        return False


def _runs(root: Path, name: str) -> bool:
    return any(
        reading.text(path).strip() == name[:15] for path in reading.matching(root / "proc", "[0-9]*/comm")
    )


def container(root: Path, environ: Mapping[str, str]) -> str | None:
    """What kind of container or guest this is, as far as its marks tell."""
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    if "COLAB_RELEASE_TAG" in environ or "COLAB_GPU" in environ:
        return "colab"
    if reading.exists(root / ".dockerenv") or reading.exists(root / "run/.containerenv"):
        return "docker"
    if "APPTAINER_CONTAINER" in environ or "SINGULARITY_CONTAINER" in environ:
        return "apptainer"
    if "microsoft" in reading.text(root / "proc/version").lower():
        return "wsl"
    return None


def other_accelerator(root: Path) -> str | None:
    """An accelerator of another maker, in words."""
    if reading.exists(root / "dev/kfd"):
        return "an AMD GPU"
    if platform.system() == "Darwin" and root == Path("/"):
        # A Python for Intel under Rosetta says x86_64; the processor's name does not lie.
        return "an Apple GPU" if platform.machine() == "arm64" or "ARM64" in platform.version() else None
    return None
