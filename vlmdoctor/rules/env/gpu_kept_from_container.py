"""A container that was started without GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Driver, Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop, workstation

VARIABLE = "NVIDIA_VISIBLE_DEVICES"


@rule(
    "gpu-kept-from-container",
    "ENV103",
    explains=("torch-without-gpu-support", "driver-not-loaded", "cuda-does-not-start"),
)
def gpu_kept_from_container(environment: Environment) -> Iterator[Finding]:
    """GPU not passed into the container: NVIDIA_VISIBLE_DEVICES keeps it out.

    ## Why it matters
    With `void`, `none` or nothing in NVIDIA_VISIBLE_DEVICES the NVIDIA container runtime passes no GPU in,
    and torch trains on the CPU (https://github.com/mmartial/ComfyUI-Nvidia-Docker/issues/104). Many images
    set the variable themselves.

    ## Confidence and false positives
    The GPU is on the host's PCI bus, and its device files are missing here. Nothing is reported where they
    exist: under CDI the variable is `void` on purpose. It is an error where the installed torch was built for
    CUDA, and for information where it was built for the CPU.

    ## What to do
    Start the container with `--gpus all`, or set `NVIDIA_VISIBLE_DEVICES=all`.
    """
    environment.need("variables", "pci")
    value = environment.variables.get(VARIABLE)
    if value not in ("void", "none", "") or environment.gpus:
        return
    if not any(device.vendor == "nvidia" for device in environment.pci or ()):
        return
    yield Finding(
        message=f'{VARIABLE} is "{value}": the container gets none of the host\'s GPUs',
        severity=Severity.ERROR if environment.torch_cuda else Severity.INFO,
        at=(VARIABLE,),
        measured={"value": value, "device_files": list((environment.driver or Driver()).nodes or ())},
        cause="the container runtime reads the variable and passes no device file in",
        fix=Fix("start the container with the GPUs", ("docker run --gpus all …",)),
    )


@gpu_kept_from_container.bad
def void() -> Environment:
    return workstation(
        container="docker",
        variables={VARIABLE: "void"},
        gpus=(),
        pci=workstation().pci,
        driver=None,
        nvml=None,
    )


@gpu_kept_from_container.good
def void_under_cdi() -> Environment:
    return workstation(container="docker", variables={VARIABLE: "void"})


@gpu_kept_from_container.good
def no_gpu_in_the_host() -> Environment:
    return laptop(container="docker", variables={VARIABLE: "void"})
