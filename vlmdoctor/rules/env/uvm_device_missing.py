"""The device file that every CUDA program needs is missing."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Driver, Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import workstation


@rule("uvm-device-missing", "ENV206", explains=("cuda-does-not-start",))
def uvm_device_missing(environment: Environment) -> Iterator[Finding]:
    """/dev/nvidia-uvm is missing: CUDA does not start.

    ## Why it matters
    nvidia-smi works, and CUDA fails with "unknown error" (999): the module nvidia_uvm is not loaded, was lost
    in a suspend, or its device was not passed into the container
    (https://github.com/pytorch/pytorch/issues/49081, https://github.com/pytorch/pytorch/issues/88639).

    ## Confidence and false positives
    The device files are listed. WSL and Jetson work without this one and are not judged.

    ## What to do
    Load the module on the host; after a suspend, unload it first.
    """
    environment.need("nodes")
    nodes = environment.driver.nodes if environment.driver else None
    if not nodes or "nvidia-uvm" in nodes or environment.container == "wsl":
        return
    if not any(name[6:].isdigit() for name in nodes):
        return
    yield Finding(
        message="/dev/nvidia-uvm is missing: CUDA does not start, though nvidia-smi works",
        severity=Severity.ERROR,
        at=("/dev/nvidia-uvm",),
        measured={"device_files": list(nodes)},
        cause="the kernel module nvidia_uvm is not loaded, or its device was not passed into the container",
        fix=Fix(
            "load the module on the host (after a suspend: unload it first)",
            ("sudo modprobe -r nvidia_uvm; sudo modprobe nvidia_uvm", "sudo nvidia-modprobe -u -c=0"),
        ),
    )


@uvm_device_missing.bad
def after_a_suspend() -> Environment:
    return workstation(
        driver=Driver(
            version="580.65.06", user_version="580.65.06", nodes=("nvidia0", "nvidia1", "nvidiactl")
        )
    )


@uvm_device_missing.good
def all_device_files() -> Environment:
    return workstation()
