"""Shared libraries: those that shadow torch's own, and extensions that were built for another torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlmdoctor.evidence.environment.facts import Extension, Library, Torch
from vlmdoctor.probes.machine.elf import defined, undefined
from vlmdoctor.probes.machine.packages import Installed
from vlmdoctor.sandbox import reading

# Library -> the wheel that brings it. For CUDA 13 the wheels share one folder, so that it does not tell.
_WHEELS = {
    "libnvJitLink": "nvjitlink",
    "libcudnn": "cudnn",
    "libnccl": "nccl",
    "libcublas": "cublas",
    "libcublasLt": "cublas",
    "libcusparse": "cusparse",
    "libcudart": "cuda_runtime",
}
_FILE = re.compile(rf"({'|'.join(_WHEELS)}|libcudnn_engines_\w+)\.so\.(\d[\d.]*)")
_SYSTEM = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/local/cuda/lib64")


def shadowing(root: Path, environ: Mapping[str, str], site: Sequence[str]) -> tuple[Library, ...]:
    """CUDA libraries that win over those in torch's wheels: by LD_LIBRARY_PATH, or cuDNN in the system."""
    wheels = _in_wheels(site)
    if not wheels:
        return ()
    found: list[Library] = []
    for entry in dict.fromkeys(environ.get("LD_LIBRARY_PATH", "").split(":")):
        if not entry.startswith("/") or "site-packages/nvidia" in entry:
            continue
        found += _conflicts(root / entry.lstrip("/"), entry, wheels, "LD_LIBRARY_PATH")
    for folder in _SYSTEM:
        system = _conflicts(root / folder, f"/{folder}", wheels, "system")
        found += [library for library in system if library.name.startswith("libcudnn_engines")]
    return tuple(found)


def _in_wheels(site: Sequence[str]) -> dict[str, str]:
    """Library with its major version (`libcudnn.so.9`) -> version, for what the wheels brought."""
    found: dict[str, str] = {}
    for entry in site:
        versions = {
            match[1]: match[2]
            for path in reading.matching(Path(entry), "nvidia_*.dist-info")
            if (match := re.fullmatch(r"nvidia_(\w+?)(?:_cu\d+)?-([\d.]+)\.dist-info", path.name))
        }
        for path in reading.matching(Path(entry) / "nvidia", "*/lib/*.so.*"):
            if match := _FILE.fullmatch(path.name):
                wheel = _WHEELS.get(match[1], "cudnn")
                package = versions.get(wheel, "")
                found.setdefault(f"{match[1]}.so.{match[2].split('.')[0]}", package)
    return found


def _conflicts(folder: Path, shown: str, wheels: Mapping[str, str], by: str) -> Iterator[Library]:
    best: dict[str, str] = {}
    for path in reading.matching(folder, "lib*.so.*"):
        if match := _FILE.fullmatch(path.name):
            name = f"{match[1]}.so.{match[2].split('.')[0]}"
            if len(match[2]) >= len(best.get(name, "")):
                best[name] = match[2]
    for name, version in sorted(best.items()):
        if name in wheels:
            yield Library(
                name=name, path=f"{shown}/{name}", version=version, wheel=wheels[name] or None, by=by
            )


def extensions(site: Sequence[str], found: Installed, torch: Torch | None) -> tuple[Extension, ...]:
    """The compiled extensions of torch that break most often."""
    made = []
    for package, pattern in (
        ("flash-attn", "flash_attn_2_cuda*.so"),
        ("flash-attn-3", "flash_attn_3/_C*.so"),
    ):
        if package in found.versions:
            version = found.versions[package]
            files = reading.matching(Path(found.folders[package]), pattern)
            built = re.search(r"torch(\d+\.\d+)", version)
            cuda = re.search(r"cu(\d+?)(\d)?(?=torch)", version)
            made.append(
                Extension(
                    package=package,
                    version=version,
                    torch=built[1] if built else None,
                    cuda=".".join(part for part in cuda.groups() if part) if cuda else None,
                    missing=_missing(files[0], torch) if files else (),
                )
            )
    if "xformers" in found.versions:
        made.append(_xformers(found))
    if "bitsandbytes" in found.versions:
        folder = Path(found.folders["bitsandbytes"]) / "bitsandbytes"
        built_for = tuple(path.stem[21:] for path in reading.matching(folder, "libbitsandbytes_cuda*.so"))
        made.append(
            Extension(package="bitsandbytes", version=found.versions["bitsandbytes"], cuda_files=built_for)
        )
    return tuple(made)


def _xformers(found: Installed) -> Extension:
    path = Path(found.folders["xformers"]) / "xformers" / "cpp_lib.json"
    try:
        built = json.loads(reading.text(path))["version"]
        cuda = int(built["cuda"]) if built.get("cuda") else None
        return Extension(
            package="xformers",
            version=found.versions["xformers"],
            torch=str(built["torch"]),
            cuda=f"{cuda // 100}.{cuda % 100}" if cuda else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Extension(package="xformers", version=found.versions["xformers"])


def _missing(library: Path, torch: Torch | None) -> tuple[str, ...]:
    """C++ symbols of torch that the library needs and no library of the installed torch has."""
    if torch is None or torch.folder is None:
        return ()
    wanted = {name for name in undefined(library) if name.startswith((b"_ZN3c10", b"_ZNK3c10", b"_ZN2at"))}
    libraries = reading.matching(Path(torch.folder) / "lib", "lib*.so")
    if not wanted or not libraries:
        return ()
    for path in libraries:
        wanted -= defined(path)
        if not wanted:
            return ()
    return tuple(sorted(name.decode(errors="replace") for name in wanted)[:3])


def openmp(site: Sequence[str]) -> tuple[str, ...]:
    """Intel's and LLVM's OpenMP runtimes that other packages bring beside torch's own."""
    found = []
    for entry in site:
        for pattern in ("*.libs/libiomp5*", "*/lib/libiomp5*", "*/.dylibs/libomp*", "*/lib/libomp.dylib"):
            found += [str(path.relative_to(entry)) for path in reading.matching(Path(entry), pattern)]
        for name in ("libiomp5.so", "libiomp5.dylib"):
            # The wheel of intel-openmp puts its library above site-packages.
            if entry.endswith("site-packages") and reading.exists(Path(entry).parent.parent / name):
                found.append(name)
    return tuple(dict.fromkeys(found))
