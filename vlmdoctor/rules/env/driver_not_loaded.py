"""An NVIDIA GPU without a working driver."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Nvml, PciGpu
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import WHEEL, laptop, workstation


@rule("driver-not-loaded", "ENV215", explains=("nvml-does-not-answer", "cuda-does-not-start"))
def driver_not_loaded(environment: Environment) -> Iterator[Finding]:
    """NVIDIA driver not loaded, or GPU not passed into the container.

    ## Why it matters
    torch finds no GPU and trains on the CPU. The module was not built for a new kernel, or is blocked by
    secure boot, or nouveau has the GPU, or the container was started without `--gpus`.

    ## Confidence and false positives
    The GPU is on the PCI bus; there is neither a loaded module nor a device file, or NVML reports that the
    driver is not loaded. It is an error where the installed torch was built for CUDA, else a warning; in a
    container, where a CPU job may be intended, a warning at most. GPUs that are passed to a virtual machine
    are not counted.

    ## What to do
    Load the driver and read its log; for a container, pass the GPUs in.
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
        message="the NVIDIA GPU was not passed into this container"
        if inside
        else "the NVIDIA driver is not loaded, and there is an NVIDIA GPU",
        severity=Severity.ERROR if environment.torch_cuda and not inside else Severity.WARNING,
        at=tuple(gpu.bus for gpu in nvidia) or ("NVIDIA driver",),
        measured={"on_the_bus": len(nvidia), "held_by": holder},
        cause="the container was started without --gpus"
        if inside
        else "nouveau uses the GPU"
        if holder == "nouveau"
        else "the kernel module nvidia is not loaded",
        fix=Fix("start the container with the GPUs", ("docker run --gpus all …",))
        if inside
        else Fix("load the driver and read its log", ("sudo modprobe nvidia", "sudo dmesg | grep -i nvidia")),
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
