"""GPU memory with uncorrectable errors."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation


@rule("gpu-memory-errors", "ENV209", explains=("gpu-error-logged",))
def gpu_memory_errors(environment: Environment) -> Iterator[Finding]:
    """Uncorrectable ECC errors or failed row remapping in GPU memory.

    ## Why it matters
    A job on such a GPU dies with an ECC error after hours, or is refused by the driver
    (https://github.com/NVIDIA/NVSentinel/issues/155). Rows that wait to be remapped are replaced at the next
    reset; rows that can't be remapped mean a new GPU.

    ## Confidence and false positives
    Counted by the GPU itself since the driver was loaded. A failed remapping is an error; a pending one and
    uncorrected errors are a warning: a reset clears them.

    ## What to do
    Reset the GPU when nothing runs on it; replace the GPU if the errors come again.
    """
    for index, gpu in enumerate(environment.gpus):
        if not (gpu.remap_failed or gpu.remap_pending or gpu.ecc_uncorrected):
            continue
        yield Finding(
            message=f"GPU {index} has memory rows that could not be remapped"
            if gpu.remap_failed
            else f"GPU {index} has memory errors that could not be corrected",
            severity=Severity.ERROR if gpu.remap_failed else Severity.WARNING,
            at=(f"GPU {index}: {gpu.name}", gpu.bus or ""),
            measured={
                "uncorrected_errors": gpu.ecc_uncorrected,
                "remapping_pending": gpu.remap_pending,
                "remapping_failed": gpu.remap_failed,
            },
            cause="its memory is failing"
            if gpu.remap_failed
            else "its memory had errors since the driver was loaded",
            fix=Fix("reset the GPU when nothing runs on it", (f"sudo nvidia-smi --gpu-reset -i {index}",)),
        )


@gpu_memory_errors.bad
def rows_wait() -> Environment:
    return workstation(gpus=(card(), card(1, remap_pending=True, ecc_uncorrected=1)))


@gpu_memory_errors.good
def no_errors() -> Environment:
    return workstation()


@gpu_memory_errors.good
def not_told() -> Environment:
    return workstation(gpus=(card(ecc_uncorrected=None, remap_pending=None), card(1)))
