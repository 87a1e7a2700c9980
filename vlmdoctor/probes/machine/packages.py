"""Installed packages, read from the names and metadata of their dist-info folders: nothing is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlmdoctor.sandbox import reading

# What is reported, in this order.
PACKAGES = (
    *("torch", "torchvision", "torchaudio", "transformers", "accelerate", "peft", "numpy", "tokenizers"),
    *("safetensors", "huggingface-hub", "datasets", "deepspeed", "flash-attn", "xformers", "bitsandbytes"),
    *("triton", "timm", "trl", "lightning", "pytorch-lightning", "vllm", "sglang", "unsloth", "liger-kernel"),
    *("qwen-vl-utils", "pillow", "nvidia-ml-py", "pynvml", "intel-openmp", "ray-lightning", "openrlhf"),
    *("amdsmi", "rocm-sdk-core"),
)
# Whose own requirements are held against what is installed.
_ASKED = (
    *("torchvision", "torchaudio", "transformers", "accelerate", "peft", "trl", "xformers", "bitsandbytes"),
    *("timm", "deepspeed", "vllm", "torch", "datasets", "lightning"),
)


@dataclass(frozen=True)
class Installed:
    """What is installed.

    Attributes:
        versions: Package -> version.
        requires: Package -> its requirements on other packages looked at.
        recorded: Package -> all versions that are recorded in the folder where it was found first.
        folders: Package -> the folder that holds it.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    requires: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    recorded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)


_DIST = re.compile(r"(?P<name>[A-Za-z0-9_.]+?)-(?P<version>[^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info")


def installed(site: Sequence[str]) -> Installed:
    """The packages in the folders `site`; the first folder that has one wins, as when importing."""
    versions: dict[str, str] = {}
    recorded: dict[str, list[str]] = {}
    folders: dict[str, str] = {}
    metadata: dict[str, Path] = {}
    for folder in dict.fromkeys(site):
        for name, version, path in _distributions(folder):
            if folders.setdefault(name, folder) == folder:
                recorded.setdefault(name, []).append(version)
                versions[name] = version
                metadata[name] = path
    wanted = [name for name in PACKAGES if name in versions]
    wanted += sorted(
        name for name in versions if re.fullmatch(r"nvidia-.*-cu\d+|nvidia-(cudnn|nccl).*", name)
    )
    return Installed(
        {name: versions[name] for name in wanted},
        {name: needs for name in _ASKED if name in versions and (needs := _requirements(metadata[name]))},
        {name: tuple(sorted(set(recorded[name]))) for name in wanted},
        {name: folders[name] for name in wanted},
    )


def _distributions(folder: str) -> list[tuple[str, str, Path]]:
    try:
        entries = [(entry.name, entry.path) for entry in os.scandir(folder) if entry.name.endswith("-info")]
    except (OSError, ValueError):
        return []
    found = []
    for entry, path in sorted(entries):
        match = _DIST.fullmatch(entry)
        # pip renames a package that it could not remove to ~name: that one is not installed.
        if match:
            name = re.sub(r"[-_.]+", "-", match["name"]).lower()
            found.append((name, match["version"], Path(path) / "METADATA"))
    return found


def _requirements(metadata: Path) -> tuple[str, ...]:
    """Requirements on the packages looked at that hold always, without extras."""
    head = reading.text(metadata, 200_000).partition("\n\n")[0]
    found = []
    for line in re.findall(r"^Requires-Dist:\s*(.+)$", head, re.MULTILINE):
        name = re.match(r"[A-Za-z0-9_.-]+", line)
        if name and re.sub(r"[-_.]+", "-", name[0]).lower() in PACKAGES and "extra ==" not in line:
            found.append(line.strip())
    return tuple(found)


def accelerate_on_cpu(root: Path, environ: Mapping[str, str]) -> str | None:
    """The accelerate configuration in use that forces the CPU, if it does."""
    cache = environ.get("HF_HOME")
    if not cache:
        cache = str(
            Path(environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME', '')}/.cache") / "huggingface"
        )
    for name in ("default_config.yaml", "default_config.yml", "default_config.json"):
        path = Path(cache) / "accelerate" / name
        place = root / path.relative_to("/") if path.is_absolute() else path
        if re.search(r"^\s*\"?use_cpu\"?\s*:\s*true\b", reading.text(place), re.MULTILINE | re.IGNORECASE):
            return str(path)
    return None
