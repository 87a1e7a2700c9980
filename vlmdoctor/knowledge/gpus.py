"""The GPUs that a dry run can be planned for."""

from __future__ import annotations

from dataclasses import dataclass

from vlmdoctor.errors import UserError

CUDA_RESERVED = 1 << 30  # bytes: CUDA's own context, and what the allocator can't hand out


@dataclass(frozen=True)
class GpuModel:
    """A GPU.

    Attributes:
        memory: In GiB.
        half: Dense float16 operations a second, in units of 1e12; of bfloat16 too, where it has them.
        single: Those of float32, without TF32, which PyTorch leaves off.
        bfloat16: Whether its matrix units know that dtype.
    """

    memory: int
    half: float
    single: float
    bfloat16: bool = True


GPUS = {
    "b200": GpuModel(180, 2250, 75),
    "h200": GpuModel(141, 989, 67),
    "h100": GpuModel(80, 989, 67),
    "a100-80": GpuModel(80, 312, 19.5),
    "a100-40": GpuModel(40, 312, 19.5),
    "l40s": GpuModel(48, 362, 91.6),
    "l4": GpuModel(24, 121, 30.3),
    "a10": GpuModel(24, 125, 31.2),
    "v100-32": GpuModel(32, 125, 15.7, bfloat16=False),
    "t4": GpuModel(16, 65, 8.1, bfloat16=False),
    "5090": GpuModel(32, 209, 104.8),
    "4090": GpuModel(24, 165, 82.6),
    "3090": GpuModel(24, 71, 35.6),
    "mi300x": GpuModel(192, 1307, 163.4),
}


def gpu_named(name: str) -> GpuModel:
    """The GPU with this name; raises `UserError` where there is none."""
    found = GPUS.get(name.lower())
    if found is None:
        raise UserError(f"--gpu can't be '{name}'; choose one of {', '.join(GPUS)}.")
    return found
