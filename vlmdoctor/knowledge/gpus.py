"""The GPUs that a dry run can be planned for, and the names that people have for them.

Rates are those of the makers' data sheets, dense (without sparsity), with sums in float32.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from vlmdoctor.errors import UserError

CUDA_RESERVED = 1 << 30  # bytes: CUDA's own context, and what the allocator can't hand out


@dataclass(frozen=True)
class GpuModel:
    """A GPU.

    Attributes:
        memory: In GiB.
        half: Dense float16 operations a second, in units of 1e12; of bfloat16 too, where it has them. None
            where it is not known.
        single: Those of float32, without TF32, which PyTorch leaves off.
        bfloat16: Whether its matrix units know that dtype.
    """

    memory: float
    half: float | None = None
    single: float | None = None
    bfloat16: bool = True


GPUS = {
    "b200": GpuModel(180, 2250, 75),
    "h200": GpuModel(141, 989, 67),
    "h100": GpuModel(80, 989, 67),
    "h100-pcie": GpuModel(80, 756, 51),
    "a100-80": GpuModel(80, 312, 19.5),
    "a100-40": GpuModel(40, 312, 19.5),
    "l40s": GpuModel(48, 362, 91.6),
    "a6000": GpuModel(48, 155, 38.7),
    "a40": GpuModel(48, 150, 37.4),
    "l4": GpuModel(24, 121, 30.3),
    "a10": GpuModel(24, 125, 31.2),
    "a10g": GpuModel(24),
    "v100-32": GpuModel(32, 125, 15.7, bfloat16=False),
    "v100-16": GpuModel(16, 125, 15.7, bfloat16=False),
    "t4": GpuModel(16, 65, 8.1, bfloat16=False),
    "5090": GpuModel(32, 209, 104.8),
    "4090": GpuModel(24, 165, 82.6),
    "3090": GpuModel(24, 71, 35.6),
    "mi300x": GpuModel(192, 1307, 163.4),
}
# What makers and drivers write beside the model, and what changes neither memory nor rate here.
_BESIDE = {
    *("nvidia", "amd", "instinct", "geforce", "rtx", "tesla", "gpu", "graphics", "card", "x1", "1x"),
    *("sxm", "sxm2", "sxm3", "sxm4", "sxm5", "pcie", "pci", "oam", "hbm2", "hbm2e", "hbm3", "hbm3e", "gddr6"),
    *("tensor", "core", "ampere", "hopper", "ada", "lovelace", "blackwell", "turing", "volta"),
}
_WORD = re.compile(r"\d+(?:\.\d+)?\s*(?:gib|gb|g)\b|[a-z0-9]+|[^\sa-z0-9_-]+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:gib|gb|g)")
_LEAST, _MOST = 2, 4096  # GiB of a GPU that is named by its memory alone


@dataclass(frozen=True)
class Chosen:
    """The GPU that a name stands for.

    Attributes:
        name: A name of `GPUS`, or its memory, such as `24GB`.
        model: The GPU.
        others: What else the name may stand for: GPUs of the same model with more memory.
    """

    name: str
    model: GpuModel
    others: tuple[str, ...] = ()


def gpu_names() -> list[str]:
    """The names of all known GPUs, as `--gpu` takes them."""
    return list(GPUS)


def gpu_named(name: str) -> GpuModel:
    """The GPU with this name; raises `UserError` where there is none."""
    return gpu_chosen(name).model


def gpu_chosen(text: str) -> Chosen:
    """The GPU that is meant by a name as people, drivers and shops write it, or by its memory.

    Of several that may be meant, the one with the least memory is taken: what fits there fits all.

    Raises:
        UserError: No GPU is known by that name.

    >>> gpu_chosen("NVIDIA A100-SXM4-80GB").name, gpu_chosen("RTX 4090").name, gpu_chosen("24 gb").name
    ('a100-80', '4090', '24GB')
    >>> gpu_chosen("A100").name, gpu_chosen("A100").others
    ('a100-40', ('a100-80',))
    """
    words = [re.sub(r"^rtx(?=\w)", "", word) for word in _WORD.findall(text.lower())]
    sizes = [float(match[1]) for word in words if (match := _SIZE.fullmatch(word))]
    names = [word for word in words if not _SIZE.fullmatch(word)]
    if sizes and not set(names) - _BESIDE:
        return _of_size(text, sizes)
    family = next((word for word in names if word in _FAMILIES), None)
    # `a100-40` and `a100 40`: a bare number beside a model is its memory.
    sizes += [float(word) for word in names if word.isdecimal() and word != family]
    left = {word for word in names if not word.isdecimal()} - {family} - _BESIDE
    if family is None or left or len(set(sizes)) > 1:
        raise UserError(_unknown(text))
    fitting = [name for name in _FAMILIES[family] if not sizes or GPUS[name].memory == sizes[0]]
    if not fitting:
        raise UserError(_of_other_size(text, family, sizes[0]))
    own = [name for name in fitting if set(name.split("-")[1:]) & set(names)]
    fitting = own or [name for name in fitting if not name.endswith("-pcie")]
    fitting.sort(key=lambda name: GPUS[name].memory)
    return Chosen(fitting[0], GPUS[fitting[0]], tuple(fitting[1:]))


def _families() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in GPUS:
        found.setdefault(name.split("-")[0], []).append(name)
    return found


_FAMILIES = _families()


def _of_size(text: str, sizes: list[float]) -> Chosen:
    size = sizes[0]
    if len(sizes) > 1 or not _LEAST <= size <= _MOST:
        raise UserError(f"--gpu can't be '{text}'; give one size from {_LEAST}GB to {_MOST}GB.")
    return Chosen(f"{size:g}GB", GpuModel(size))


def _of_other_size(text: str, family: str, size: float) -> str:
    there = " or ".join(
        f"{memory:g} GB" for memory in sorted({GPUS[name].memory for name in _FAMILIES[family]})
    )
    return f"--gpu can't be '{text}': {family} has {there} here; for memory alone give --gpu {size:g}GB."


def _unknown(text: str) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower())
    near = [name for name in GPUS if name.split("-")[0] in words]
    near += difflib.get_close_matches(text.lower(), GPUS, n=3)
    near += [name for word in words for name in difflib.get_close_matches(word, GPUS, n=2)]
    close = list(dict.fromkeys(near))[:3]
    hint = f"did you mean {' or '.join(close)}" if close else f"choose one of {', '.join(GPUS)}"
    return f"--gpu can't be '{text}'; {hint}, or give its memory, such as --gpu 24GB."
