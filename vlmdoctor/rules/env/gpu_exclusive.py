"""A GPU that allows one process at a time, or none."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Process
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation


@rule("gpu-exclusive", "ENV214")
def gpu_exclusive(environment: Environment) -> Iterator[Finding]:
    """GPU compute mode is exclusive or prohibited.

    ## Why it matters
    In exclusive mode the second process on a GPU, a DataLoader worker that touches CUDA included, gets "all
    CUDA-capable devices are busy or unavailable" (https://github.com/NVIDIA/k8s-device-plugin/issues/647,
    https://github.com/ai-dynamo/nixl/issues/1041). In prohibited mode every process gets it. Leftovers of MPS
    have the same effect.

    ## Confidence and false positives
    The mode is NVML's. Prohibited is an error. Exclusive is a warning where a process already uses the GPU,
    and for information otherwise: clusters set it on purpose.

    ## What to do
    Set the default mode: `sudo nvidia-smi -c DEFAULT` on the host.
    """
    for mode, severity in (("prohibited", Severity.ERROR), ("exclusive", Severity.INFO)):
        found = [(i, gpu) for i, gpu in enumerate(environment.gpus) if gpu.compute_mode == mode]
        if not found:
            continue
        names = ", ".join(str(i) for i, _ in found)
        busy = mode == "exclusive" and any(gpu.processes for _, gpu in found)
        yield Finding(
            message=f"GPU {names}: no process may use CUDA"
            if mode == "prohibited"
            else f"GPU {names}: one process at a time may use CUDA",
            severity=Severity.WARNING if busy else severity,
            at=tuple(f"GPU {i}: {gpu.name}" for i, gpu in found),
            measured={"compute_mode": mode, "processes": sum(len(gpu.processes or ()) for _, gpu in found)},
            cause="its compute mode allows no other",
            fix=Fix("set the default mode", ("sudo nvidia-smi -c DEFAULT",)),
        )


@gpu_exclusive.bad
def taken() -> Environment:
    return workstation(
        gpus=(card(compute_mode="exclusive", processes=(Process(pid=4711, name="python"),)), card(1))
    )


@gpu_exclusive.good
def default_mode() -> Environment:
    return workstation()
