"""From one dry step to gigabytes on a GPU and tokens a second."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.knowledge.gpus import CUDA_RESERVED, GpuModel

if TYPE_CHECKING:
    from vlmdoctor.dryrun.measure import StepCost

UTILISATION = 0.4  # of the peak rate: what well-tuned training reaches


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


def cost_of(measured: StepCost, optimizer: str = "adamw") -> Cost:
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


def room_on(gpu: GpuModel) -> int:
    """The bytes that a step may take."""
    return int(gpu.memory * (1 << 30)) - CUDA_RESERVED


def fits(cost: Cost, gpu: GpuModel) -> bool:
    """Whether the peak fits beside what the driver takes."""
    return cost.peak <= room_on(gpu)


def seconds_a_step(cost: Cost, gpu: GpuModel, dtype: str, utilisation: float = UTILISATION) -> float:
    """Seconds that one step takes at this share of the GPU's peak rate in `dtype`."""
    rate = gpu.single if dtype == "float32" else gpu.half
    return cost.flops / (rate * 1e12 * utilisation)
