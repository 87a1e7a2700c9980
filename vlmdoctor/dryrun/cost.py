"""From one dry step to gigabytes on a GPU and tokens a second."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import UserError

if TYPE_CHECKING:
    from vlmdoctor.dryrun.measure import Measured

UTILISATION = 0.4  # of the peak rate: what well-tuned training reaches
RESERVED = 1 << 30  # CUDA's own context, and what the allocator can't hand out


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


@dataclass(frozen=True)
class Cost:
    """Bytes of one training step on one device, and its speed.

    Attributes:
        parameters, gradients, optimizer, activations: Bytes; activations are what backward needs.
        peak: The most that is needed at once.
        peak_in: `forward`, `backward` or `optimizer step`.
        flops: Floating-point operations of one step, those computed again under checkpointing included.
        buckets: Bytes of data parallelism's copy of the gradients.
        gathered: Bytes of weights that FSDP2 keeps gathered from forward to backward.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    peak_in: str
    flops: int
    buckets: int = 0
    gathered: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def cost_of(measured: Measured, optimizer: str = "adamw") -> Cost:
    """The cost of the step that was measured, once the optimizer has its state."""
    from vlmdoctor.dryrun.optimizers import optimizer_bytes

    state, temporary = optimizer_bytes(optimizer, measured.learning)
    fixed = measured.parameters + measured.buckets + state
    passes = fixed + measured.peak
    update = fixed + measured.gradients + temporary
    return Cost(
        parameters=measured.parameters,
        gradients=measured.gradients,
        optimizer=state,
        activations=measured.saved,
        peak=max(passes, update),
        peak_in="optimizer step" if update > passes else measured.peak_at[0],
        flops=measured.flops,
        buckets=measured.buckets,
        gathered=measured.gathered,
    )


def gpu_named(name: str) -> Gpu:
    """The GPU with this name; raises `UserError` where there is none."""
    found = GPUS.get(name.lower())
    if found is None:
        raise UserError(f"--gpu can't be '{name}'; choose one of {', '.join(GPUS)}.")
    return found


def room_on(gpu: Gpu) -> int:
    """The bytes that a step may take."""
    return int(gpu.memory * (1 << 30)) - RESERVED


def fits(cost: Cost, gpu: Gpu) -> bool:
    """Whether the peak fits beside what the driver takes."""
    return cost.peak <= room_on(gpu)


def seconds_a_step(cost: Cost, gpu: Gpu, dtype: str, utilisation: float = UTILISATION) -> float:
    """Seconds that one step takes at this share of the GPU's peak rate in `dtype`."""
    rate = gpu.single if dtype == "float32" else gpu.half
    return cost.flops / (rate * 1e12 * utilisation)
