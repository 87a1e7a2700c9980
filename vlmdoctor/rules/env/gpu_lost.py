"""A GPU that the driver no longer reaches."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Nvml, PciGpu
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, laptop, workstation


@rule("gpu-lost", "ENV208", explains=("cuda-does-not-start", "gpu-memory-errors", "gpu-error-logged"))
def gpu_lost(environment: Environment) -> Iterator[Finding]:
    """GPU lost: it is on the PCI bus, and the driver no longer reaches it.

    ## Why it matters
    A GPU that fell off the bus (Xid 79) stays listed, and every program that touches it hangs or fails; often
    the log has no line about it (https://github.com/NVIDIA/NVSentinel/issues/155,
    https://github.com/leptonai/gpud/issues/1209, https://github.com/rwth-i6/returnn/issues/1486).

    ## Confidence and false positives
    The driver itself reports that the GPU is lost, or it has more GPUs on the bus than it lists. GPUs of
    another driver (vfio-pci, nouveau) are not counted, and in a container nothing is judged.

    ## What to do
    Restart the machine, with the power off for a while; if it happens again, check power, temperature and
    seating of the card.
    """
    environment.need("nvml")
    lost = sum(gpu.lost for gpu in environment.gpus)
    answered = environment.nvml is not None and environment.nvml.state == "answered"
    held = [
        device for device in environment.pci or () if device.vendor == "nvidia" and device.driver == "nvidia"
    ]
    missing = len(held) - len(environment.gpus) if answered and environment.container is None and held else 0
    if not lost and missing <= 0:
        return
    yield Finding(
        message=f"{lost or missing} of {max(len(environment.gpus), len(held))} GPUs are lost: they don't "
        "answer the driver",
        severity=Severity.ERROR,
        at=tuple(gpu.bus or gpu.name for gpu in environment.gpus if gpu.lost) or ("PCI bus",),
        measured={"on_the_bus": len(held), "listed": len(environment.gpus), "lost": lost},
        cause="the GPU fell off the bus, or its firmware does not answer",
        fix=Fix(
            "look for Xid in the log, and restart the machine", ("sudo dmesg | grep -i xid", "sudo reboot")
        ),
    )


@gpu_lost.bad
def fell_off_the_bus() -> Environment:
    return workstation(gpus=(card(), card(1, lost=True)))


@gpu_lost.bad
def one_less_than_on_the_bus() -> Environment:
    return workstation(gpus=(card(),), pci=workstation().pci)


@gpu_lost.good
def given_to_a_virtual_machine() -> Environment:
    pci = (
        PciGpu(bus="0000:17:00.0", vendor="nvidia", driver="nvidia"),
        PciGpu(bus="0000:18:00.0", vendor="nvidia", driver="vfio-pci"),
    )
    return workstation(gpus=(card(),), pci=pci)


@gpu_lost.good
def no_gpu() -> Environment:
    return laptop(nvml=Nvml(state="absent"))
