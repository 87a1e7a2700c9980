"""The GPUs that a dry run can be planned for."""

from __future__ import annotations

from dataclasses import dataclass

from vlmdoctor.errors import UserError


@dataclass(frozen=True)
class Gpu:
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
    "b200": Gpu(180, 2250, 75),
    "h200": Gpu(141, 989, 67),
    "h100": Gpu(80, 989, 67),
    "a100-80": Gpu(80, 312, 19.5),
    "a100-40": Gpu(40, 312, 19.5),
    "l40s": Gpu(48, 362, 91.6),
    "l4": Gpu(24, 121, 30.3),
    "a10": Gpu(24, 125, 31.2),
    "v100-32": Gpu(32, 125, 15.7, bfloat16=False),
    "t4": Gpu(16, 65, 8.1, bfloat16=False),
    "5090": Gpu(32, 209, 104.8),
    "4090": Gpu(24, 165, 82.6),
    "3090": Gpu(24, 71, 35.6),
    "mi300x": Gpu(192, 1307, 163.4),
}


def gpu_named(name: str) -> Gpu:
    """The GPU with this name; raises `UserError` where there is none."""
    found = GPUS.get(name.lower())
    if found is None:
        raise UserError(f"--gpu can't be '{name}'; choose one of {', '.join(GPUS)}.")
    return found
