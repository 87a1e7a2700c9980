"""An NVIDIA GPU without a working driver."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Nvml, PciGpu
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import WHEEL, laptop, workstation


@rule("driver-not-loaded", "ENV215", explains=("nvml-does-not-answer", "cuda-does-not-start"))
def driver_not_loaded(environment: Environment) -> Iterator[Finding]:
    """The machine has an NVIDIA GPU and its driver is not loaded, or was not passed into the container.

    ## Why it matters
    torch sees no GPU and trains on the CPU. The module was not built for a new kernel, is blocked by secure
    boot, nouveau holds the card, or the container was started without `--gpus`.

    ## How sure it is
    The GPU is on the PCI bus; there is neither a loaded module nor a device file, or NVML says that the
    driver is not loaded. An error where the installed torch was built for CUDA, else a warning; in a
    container, where a job for the CPU may be meant, a warning at most. GPUs that are given to a virtual
    machine do not count.

    ## What to do
    Load the driver and see what it says; for a container, pass the GPUs in.
    """
    environment.need("pci")
    nvidia = [gpu for gpu in environment.pci or () if gpu.vendor == "nvidia" and gpu.driver != "vfio-pci"]
    refused = environment.nvml is not None and environment.nvml.code == 9
    if not nvidia or (environment.gpus and not refused):
        return
    inside = environment.container is not None
    if (
        environment.driver is not None
        and environment.driver.version is not None
        and not inside
        and not refused
    ):
        return
    if inside and not environment.torch_cuda:
        return
    holder = next((gpu.driver for gpu in nvidia if gpu.driver), None)
    yield Finding(
        message="there is an NVIDIA GPU, and it was not passed into this container"
        if inside
        else "there is an NVIDIA GPU, and its driver is not loaded",
        severity=Severity.ERROR if environment.torch_cuda and not inside else Severity.WARNING,
        at=tuple(gpu.bus for gpu in nvidia) or ("NVIDIA driver",),
        measured={"on_the_bus": len(nvidia), "held_by": holder},
        cause="the container was started without --gpus"
        if inside
        else "nouveau holds the GPU"
        if holder == "nouveau"
        else "the kernel module nvidia is not loaded",
        fix=Fix("start the container with the GPUs", ("docker run --gpus all …",))
        if inside
        else Fix(
            "load the driver and see what it says", ("sudo modprobe nvidia", "sudo dmesg | grep -i nvidia")
        ),
    )


@driver_not_loaded.bad
def after_a_new_kernel() -> Environment:
    return laptop(torch=WHEEL, packages={}, pci=(PciGpu(bus="0000:01:00.0", vendor="nvidia", driver=None),))


@driver_not_loaded.good
def loaded() -> Environment:
    return workstation()


@driver_not_loaded.good
def given_to_a_virtual_machine() -> Environment:
    return laptop(
        torch=WHEEL,
        packages={},
        pci=(PciGpu(bus="0000:01:00.0", vendor="nvidia", driver="vfio-pci"),),
        nvml=Nvml(state="absent"),
    )
