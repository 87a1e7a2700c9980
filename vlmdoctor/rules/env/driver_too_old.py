"""A driver that is too old for the CUDA version of the wheel."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Driver, Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.versions import numbers
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import workstation
from vlmdoctor.rules.env.torch_without_gpu_support import reinstall

LEAST = {13: 580, 12: 525, 11: 450, 10: 410}


@rule("driver-too-old", "ENV202", explains=("cuda-does-not-start", "wheel-lacks-gpu-arch"))
def driver_too_old(environment: Environment) -> Iterator[Finding]:
    """NVIDIA driver too old for the CUDA version of torch.

    ## Why it matters
    torch says "The NVIDIA driver on your system is too old" once, as a warning, and continues without a GPU
    (https://github.com/pytorch/pytorch/issues/43058, https://github.com/pytorch/pytorch/issues/37320). It
    happens with every new torch on a machine with an old driver.

    ## Confidence and false positives
    By NVIDIA's minor-version compatibility any CUDA 12 runs on a driver from 525 on, CUDA 13 from 580, CUDA
    11 from 450; versions are compared number by number. Nothing is reported where the compatibility package
    (cuda-compat) is loaded, and where a report says that torch started CUDA.

    ## What to do
    Install a newer driver, or a torch built for an older CUDA.
    """
    environment.need("torch")
    driver = environment.driver
    cuda = numbers(environment.torch_cuda or "")
    version = numbers((driver.version or "") if driver else "")
    # Windows numbers its drivers in the same way; Jetson and WSL have their own versions on the same scale.
    if driver is None or not cuda or not version or cuda[0] not in LEAST:
        return
    if environment.live is not None and environment.live.by_torch and environment.live.state == "answered":
        return  # a report in which torch itself started CUDA
    if version[0] >= LEAST[cuda[0]] or "compat" in (driver.libcuda or ""):
        return
    yield Finding(
        message=f"driver {driver.version} is too old for torch built for CUDA {environment.torch_cuda}",
        severity=Severity.ERROR,
        at=("NVIDIA driver", "torch"),
        measured={"driver": driver.version, "cuda": environment.torch_cuda},
        threshold={"driver": f">= {LEAST[cuda[0]]}"},
        cause=f"CUDA {cuda[0]} needs a driver from {LEAST[cuda[0]]} on",
        fix=Fix("install a newer driver, or a torch that this driver can run", (reinstall(environment),)),
    )


@driver_too_old.bad
def cuda_13_on_550() -> Environment:
    return workstation(
        driver=Driver(version="550.54.15", user_version="550.54.15", nodes=("nvidia-uvm", "nvidia0"))
    )


@driver_too_old.good
def just_new_enough() -> Environment:
    return workstation(
        driver=Driver(version="580.65.06", user_version="580.65.06", nodes=("nvidia-uvm", "nvidia0"))
    )
