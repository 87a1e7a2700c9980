"""From one dry step to gigabytes on a GPU and tokens a second."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.evidence.shapes import Shapes

UTILISATION = 0.4  # of the peak rate: what well-tuned training reaches
RESERVED = 1 << 30  # CUDA's own context, and what the allocator can't hand out


@dataclass(frozen=True)
class Gpu:
    """A GPU: memory in GiB and dense bfloat16 (or float16) operations a second, in units of 1e12."""

    memory: int
    tera: float


GPUS = {
    "b200": Gpu(180, 2250),
    "h200": Gpu(141, 989),
    "h100": Gpu(80, 989),
    "a100-80": Gpu(80, 312),
    "a100-40": Gpu(40, 312),
    "l40s": Gpu(48, 362),
    "l4": Gpu(24, 121),
    "a10": Gpu(24, 125),
    "v100-32": Gpu(32, 125),
    "t4": Gpu(16, 65),
    "5090": Gpu(32, 209),
    "4090": Gpu(24, 165),
    "3090": Gpu(24, 71),
    "mi300x": Gpu(192, 1307),
}
# Bytes of state for each byte of a trainable parameter, and, apart from these, for each number.
OPTIMIZERS: dict[str, tuple[float, float]] = {
    "adamw": (2, 0),
    "adamw-8bit": (0, 2),
    "lion": (1, 0),
    "sgd-momentum": (1, 0),
    "sgd": (0, 0),
    "none": (0, 0),
}


@dataclass(frozen=True)
class Cost:
    """Bytes of one training step on one device, and its speed.

    Attributes:
        parameters, gradients, optimizer, activations: Bytes; activations are what backward needs.
        peak: The most that is needed at once.
        peak_in: `forward`, `backward` or `optimizer step`.
        flops: Floating-point operations of one step.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    peak_in: str
    flops: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def cost_of(shapes: Shapes, optimizer: str = "adamw") -> Cost:
    """The cost of the step that `shapes` tells of, once the optimizer has its state."""
    per_byte, per_number = OPTIMIZERS[optimizer]
    state = round(per_byte * shapes.gradient_bytes + per_number * shapes.trainable)
    fixed = shapes.parameter_bytes + shapes.buffer_bytes + state
    passes = fixed + shapes.peak_bytes
    # Fused over all tensors, torch's optimizers hold one more copy of a state while they update.
    update = fixed + shapes.gradient_bytes + (shapes.gradient_bytes if per_byte else 0)
    return Cost(
        parameters=shapes.parameter_bytes + shapes.buffer_bytes,
        gradients=shapes.gradient_bytes,
        optimizer=state,
        activations=shapes.saved_bytes,
        peak=max(passes, update),
        peak_in="optimizer step" if update > passes else shapes.peak_at[0],
        flops=shapes.flops_forward + shapes.flops_backward,
    )


def gpu_named(name: str) -> Gpu:
    """The GPU with this name; raises `UserError` where there is none."""
    found = GPUS.get(name.lower())
    if found is None:
        raise UserError(f"--gpu can't be '{name}'; choose one of {', '.join(GPUS)}.")
    return found


def fits(cost: Cost, gpu: Gpu) -> bool:
    """Whether the peak fits beside what the driver takes."""
    return cost.peak <= gpu.memory * (1 << 30) - RESERVED


def seconds_a_step(cost: Cost, gpu: Gpu, utilisation: float = UTILISATION) -> float:
    """Seconds that one step takes at this share of the GPU's peak rate."""
    return cost.flops / (gpu.tera * 1e12 * utilisation)
