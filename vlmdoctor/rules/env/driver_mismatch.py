"""A driver whose kernel module and libraries have different versions."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Driver, Environment, Nvml
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import workstation


@rule("driver-mismatch", "ENV204", explains=("nvml-does-not-answer", "cuda-does-not-start"))
def driver_mismatch(environment: Environment) -> Iterator[Finding]:
    """NVIDIA driver/library version mismatch: kernel module and libraries differ.

    ## Why it matters
    An update replaced the libraries while the old kernel module is still loaded: nvidia-smi says
    "Driver/library version mismatch", CUDA error 803, and no GPU works until the machine is restarted
    (https://github.com/oddmario/NVIDIA-Ubuntu-Driver-Guide/issues/4,
    https://github.com/NVIDIA/nvidia-docker/issues/1256). In a container the cause is driver libraries that
    were installed in the image.

    ## Confidence and false positives
    Measured: the version of the loaded module compared with that of the libcuda that programs load, or the
    driver's own error (NVML code 18). Nothing is reported for the compatibility package, whose version
    differs on purpose.

    ## What to do
    Restart the machine, or reload the module. In a container, remove the driver's libraries from the image.
    """
    driver, nvml = environment.driver, environment.nvml
    refused = nvml is not None and nvml.code == 18
    kernel, user = (driver.version, driver.user_version) if driver else (None, None)
    compat = driver is not None and "compat" in (driver.libcuda or "")
    differ = kernel is not None and user is not None and kernel != user and not compat
    # WSL has the library of the Windows driver and no module of its own.
    if not refused and not (differ and environment.container != "wsl"):
        return
    if nvml is not None and nvml.state == "answered":
        return
    yield Finding(
        message="driver/library version mismatch: the NVIDIA kernel module and the driver's libraries differ",
        severity=Severity.ERROR,
        at=("NVIDIA driver",),
        measured={"kernel_module": kernel, "libraries": user, "nvml": nvml.reason if nvml else None},
        cause="the driver was updated and the old kernel module is still loaded"
        if environment.container is None
        else "the image contains libraries of another driver than the host's",
        fix=Fix("restart the machine, or reload the module", ("sudo reboot",))
        if environment.container is None
        else Fix("remove libcuda and libnvidia-ml from the image: the host's are mounted in"),
    )


@driver_mismatch.bad
def updated_without_a_restart() -> Environment:
    return workstation(
        driver=Driver(
            version="580.65.06",
            user_version="580.95.05",
            libcuda="/usr/lib64/libcuda.so.580.95.05",
            nodes=("nvidia-uvm", "nvidia0"),
        ),
        nvml=Nvml(state="refused", code=18, reason="Driver/library version mismatch"),
        unseen={"nvml": "the NVIDIA driver could not be asked (NVML): Driver/library version mismatch"},
    )


@driver_mismatch.good
def same_version() -> Environment:
    return workstation()
