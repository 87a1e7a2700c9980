"""A Linux driver inside WSL."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Driver, Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation


@rule(
    "wsl-libcuda-replaced",
    "ENV210",
    explains=("cuda-does-not-start", "driver-mismatch", "nvml-does-not-answer"),
)
def wsl_libcuda_replaced(environment: Environment) -> Iterator[Finding]:
    """WSL loads a Linux libcuda instead of the one of the Windows driver.

    ## Why it matters
    WSL reaches the GPU through the Windows driver, whose libcuda is in /usr/lib/wsl/lib. A Linux driver
    installed inside WSL hides it: no devices, or error 2 (https://github.com/microsoft/WSL/issues/9092,
    https://github.com/microsoft/WSL/issues/9254, https://github.com/NVIDIA/cuml/issues/6218).

    ## Confidence and false positives
    The library that is found first is read, with links resolved.

    ## What to do
    Remove the Linux driver from WSL; install the one for Windows only.
    """
    path = (environment.driver.libcuda or "") if environment.driver else ""
    if environment.container != "wsl" or not path or path.startswith(("/usr/lib/wsl/", "/mnt/", "/lib/wsl/")):
        return
    yield Finding(
        message="WSL loads a Linux libcuda instead of the one of the Windows driver",
        severity=Severity.ERROR,
        at=(path,),
        measured={"libcuda": path},
        threshold={"libcuda": "/usr/lib/wsl/lib/libcuda.so.1"},
        cause="a Linux driver is installed inside WSL",
        fix=Fix(
            "remove the Linux driver", ("sudo apt remove --purge '^libnvidia-compute.*' '^nvidia-driver.*'",)
        ),
    )


def _wsl(path: str) -> Environment:
    return workstation(container="wsl", gpus=(card(),), pci=(), driver=Driver(version="581.29", libcuda=path))


@wsl_libcuda_replaced.bad
def linux_driver_installed() -> Environment:
    return _wsl("/usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06")


@wsl_libcuda_replaced.good
def as_windows_brings_it() -> Environment:
    return _wsl("/usr/lib/wsl/lib/libcuda.so.1")
