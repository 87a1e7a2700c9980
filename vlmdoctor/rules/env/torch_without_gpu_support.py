"""A torch that was built without support for the GPU of the machine."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Driver, Environment, PciGpu, Torch
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.versions import numbers
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import CPU_WHEEL, WHEEL, laptop, workstation

# Builds that PyTorch publishes, newest first, with the driver that each needs at least.
_INDEXES = (("cu130", 580), ("cu126", 525), ("cu118", 450))


@rule(
    "torch-without-gpu-support",
    "ENV201",
    explains=("driver-not-loaded", "wheel-lacks-gpu-arch", "driver-too-old"),
)
def torch_without_gpu_support(environment: Environment) -> Iterator[Finding]:
    """torch built without support for the machine's GPU.

    ## Why it matters
    Installing torch from the wrong index, or on top of a lock file made on a laptop, brings the build for the
    CPU: `torch.cuda.is_available()` is False and anything that asks for a GPU raises "Torch not compiled with
    CUDA enabled" (https://github.com/pytorch/pytorch/issues/122924,
    https://github.com/pytorch/pytorch/issues/49325). On aarch64 (GH200, GB10) the wheel on PyPI was CPU-only
    for long (https://github.com/pytorch/pytorch/issues/168065,
    https://github.com/pytorch/pytorch/issues/160162).

    ## Confidence and false positives
    The build is read from torch/version.py. The GPU is found through the driver, its device files or the PCI
    bus; one that is only on the bus of a container's host is not counted. A GPU for the display alone is
    reported too.

    ## What to do
    Install the build for CUDA; the index below is the newest that the driver can run.
    """
    environment.need("torch")
    torch = environment.torch
    if torch is None or not torch.version or torch.cuda or torch.hip or torch.xpu:
        if torch is not None and torch.hip and environment.gpus and environment.other_accelerator is None:
            yield _finding(environment, environment.names, f"built for ROCm {torch.hip}")
        return
    gpus = environment.names
    if not gpus and environment.container is None:
        gpus = tuple("NVIDIA GPU on the PCI bus" for gpu in environment.pci or () if gpu.vendor == "nvidia")
    if gpus:
        yield _finding(environment, gpus, "built for the CPU")


def _finding(environment: Environment, gpus: tuple[str, ...], built: str) -> Finding:
    torch = environment.torch or Torch()
    return Finding(
        message=f"torch {torch.version} is {built}: it can't use the NVIDIA GPU",
        severity=Severity.ERROR,
        at=("torch",),
        measured={"torch": torch.version, "cuda": torch.cuda or "none", "gpus": list(gpus)},
        cause="the installed wheel holds no CUDA code",
        fix=Fix("reinstall torch with the build for CUDA", (reinstall(environment),)),
    )


def reinstall(environment: Environment) -> str:
    """The line that installs torch, and what belongs to it, for the newest CUDA that the driver can run."""
    major = (numbers(environment.driver.version or "") if environment.driver else ()) or (10**6,)
    index = next((name for name, least in _INDEXES if major[0] >= least), "cu118")
    packages = [name for name in ("torchvision", "torchaudio") if name in environment.packages]
    return (
        f"pip install --force-reinstall {' '.join(['torch', *packages])} "
        f"--index-url https://download.pytorch.org/whl/{index}"
    )


@torch_without_gpu_support.bad
def cpu_wheel_beside_two_gpus() -> Environment:
    return workstation(torch=CPU_WHEEL, packages={"torch": CPU_WHEEL.version})


@torch_without_gpu_support.bad
def gpu_on_the_bus() -> Environment:
    found = (PciGpu(bus="0000:01:00.0", vendor="nvidia", driver="nvidia"),)
    return laptop(pci=found, driver=Driver(version="580.65.06", nodes=("nvidia-uvm", "nvidia0")))


@torch_without_gpu_support.good
def laptop_without_a_gpu() -> Environment:
    return laptop()


@torch_without_gpu_support.good
def cpu_job_in_a_container_on_a_gpu_host() -> Environment:
    return laptop(container="docker", pci=(PciGpu(bus="0000:01:00.0", vendor="nvidia", driver="nvidia"),))


@torch_without_gpu_support.good
def the_right_wheel() -> Environment:
    return workstation(torch=WHEEL)
