"""The machine as seen without importing torch: environment variables, packages, NVIDIA devices."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DEPTH = "static"
PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy")


@dataclass(frozen=True)
class Environment:
    """A snapshot of the machine.

    Attributes:
        python: Version of Python.
        platform: Operating system and processor.
        cpus: How many processors this process may use.
        variables: The environment variables that decide which GPUs are seen, as far as they are set.
        packages: Installed package -> version, torch's with its build (`2.13.0+cpu`).
        torch_cuda: The CUDA version that torch was built for; None without CUDA or without torch.
        gpus: NVIDIA GPUs present: model names where the driver tells them, else device files.
        driver: Version of the NVIDIA driver; None without one.
        other_accelerator: An accelerator of another maker, in words; None without one.
    """

    python: str = ""
    platform: str = ""
    cpus: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    torch_cuda: str | None = None
    gpus: tuple[str, ...] = ()
    driver: str | None = None
    other_accelerator: str | None = None


VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
)


def probe(subject: object, gather: Callable[[type], object]) -> Environment:
    """This machine's snapshot."""
    return snapshot()


def snapshot(
    root: Path = Path("/"), environ: Mapping[str, str] | None = None, site: Sequence[str] | None = None
) -> Environment:
    """Reads the machine under `root`, with the environment `environ` and packages in the folders `site`."""
    environ = os.environ if environ is None else environ
    site = sys.path if site is None else site
    versions, torch_cuda = _packages(site)
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpus=_cpus(),
        variables={name: environ[name] for name in VARIABLES if name in environ},
        packages=versions,
        torch_cuda=torch_cuda,
        gpus=_gpus(root),
        driver=_driver(root),
        other_accelerator=_other_accelerator(root),
    )


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _packages(site: Sequence[str]) -> tuple[dict[str, str], str | None]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        distributions = importlib.metadata.Distribution.discover(name=name, path=list(site))
        version = next((d.metadata["Version"] for d in distributions if d.metadata), None)
        if version:
            found[name] = version
    # The metadata hide the build; version.py tells it (2.13.0+cu130), and reading it imports nothing.
    values = next((v for folder in site if (v := _assignments(Path(folder) / "torch" / "version.py"))), {})
    if values.get("__version__"):
        found["torch"] = values["__version__"]
    return found, values.get("cuda")


def _assignments(path: Path) -> dict[str, str]:
    """Names that a Python file binds to text constants at top level; empty where it can't be read."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return {}
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        for target in targets:
            if (
                isinstance(target, ast.Name)
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            ):
                found[target.id] = value.value
    return found


def _gpus(root: Path) -> tuple[str, ...]:
    models = []
    for information in _glob(root / "proc/driver/nvidia/gpus", "*/information"):
        match = re.search(r"^Model:\s*(.+)$", _text(information), re.MULTILINE)
        models.append(match[1].strip() if match else "NVIDIA GPU")
    # In a container without the driver's /proc entries the device files are what there is.
    files = [path.name for path in _glob(root / "dev", "nvidia[0-9]*") if path.name[6:].isdigit()]
    if not models and not files and (root / "usr/lib/wsl/lib/libcuda.so.1").exists():
        # WSL has neither: its GPUs are behind /dev/dxg and can't be told apart from here.
        return ("NVIDIA GPU behind WSL",) if (root / "dev/dxg").exists() else ()
    return tuple(models) or tuple(f"/dev/{name}" for name in files)


def _other_accelerator(root: Path) -> str | None:
    if (root / "dev/kfd").exists():
        return "an AMD GPU"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "an Apple GPU"
    return None


def _driver(root: Path) -> str | None:
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", _text(root / "proc/driver/nvidia/version"))
    return match[1] if match else None


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
