"""From one dry step to gigabytes on a GPU and tokens a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from vlmdoctor.knowledge.gpus import CUDA_RESERVED, GpuModel

if TYPE_CHECKING:
    from vlmdoctor.dryrun.measure import StepCost

# Of the peak. Against real steps on a CPU the tests allow this much; on a GPU fragmentation comes on top.
KNOWN_ERROR = 0.1
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
        at_peak: What is alive at the peak: bytes by part, which add up to `peak`.
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
    at_peak: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values."""
        return {name: value for name, value in asdict(self).items() if name != "at_peak"}


def cost_of(measured: StepCost, optimizer: str = "adamw") -> Cost:
    """The cost of the step that was measured, once the optimizer has its state."""
    from vlmdoctor.dryrun.optimizers import optimizer_bytes

    state, temporary = optimizer_bytes(optimizer, measured.learning)
    fixed = measured.parameters + measured.buckets + state
    passes = fixed + measured.peak
    update = fixed + measured.gradients + temporary
    updating = {"gradients": measured.gradients, "temporary": temporary}
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
        at_peak={
            "weights": measured.parameters,
            "optimizer": state,
            "buckets": measured.buckets,
            **(updating if update > passes else measured.peak_parts),
        },
    )


def room_on(gpu: GpuModel) -> int:
    """The bytes that a step may take."""
    return int(gpu.memory * (1 << 30)) - CUDA_RESERVED


def fits(cost: Cost, gpu: GpuModel) -> bool:
    """Whether the peak fits beside what the driver takes."""
    return cost.peak <= room_on(gpu)


def is_uncertain(cost: Cost, gpu: GpuModel) -> bool:
    """Whether the estimate's known error decides if it fits."""
    return abs(cost.peak - room_on(gpu)) <= KNOWN_ERROR * cost.peak


def seconds_a_step(cost: Cost, gpu: GpuModel, dtype: str, utilisation: float = UTILISATION) -> float | None:
    """Seconds of a step at this share of the GPU's peak rate in `dtype`; None where that is unknown."""
    rate = gpu.single if dtype == "float32" else gpu.half
    return cost.flops / (rate * 1e12 * utilisation) if rate else None
