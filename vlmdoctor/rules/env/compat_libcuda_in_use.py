"""CUDA's compatibility libraries on a GPU that can't use them."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Driver, Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation


@rule(
    "compat-libcuda-in-use", "ENV205", explains=("driver-mismatch", "cuda-does-not-start", "driver-too-old")
)
def compat_libcuda_in_use(environment: Environment) -> Iterator[Finding]:
    """CUDA forward compatibility library loaded on a GPU that does not support it.

    ## Why it matters
    Images from NVIDIA hold a newer libcuda for data-centre GPUs. On a GeForce or a workstation card it fails
    with error 804, "forward compatibility was attempted on non supported HW"
    (https://github.com/NVIDIA/nvidia-docker/issues/1515).

    ## Confidence and false positives
    The library that programs load is in a `compat` folder, and the GPU is a GeForce, which never supports
    forward compatibility; or CUDA itself answered 804 (`--live`).

    ## What to do
    Take the folder out of LD_LIBRARY_PATH, or use an image for a CUDA version that the driver supports.
    """
    driver = environment.driver
    path = (driver.libcuda or "") if driver else ""
    refused = environment.live is not None and environment.live.code == 804
    geforce = any("GeForce" in gpu.name for gpu in environment.gpus)
    if not refused and not ("/compat" in path and geforce):
        return
    yield Finding(
        message="CUDA's compatibility library is loaded, and this GPU does not support it",
        severity=Severity.ERROR,
        at=(path or "libcuda.so.1",),
        measured={"libcuda": path or None, "gpus": list(environment.names)},
        cause="forward compatibility works on data-centre GPUs only (error 804)",
        fix=Fix("make the loader find the driver's own libcuda first", ("unset LD_LIBRARY_PATH",)),
    )


_COMPAT = "/usr/local/cuda-13.0/compat/libcuda.so.580.65.06"


@compat_libcuda_in_use.bad
def geforce_in_an_ngc_image() -> Environment:
    driver = Driver(
        version="570.133.07", user_version="580.65.06", libcuda=_COMPAT, nodes=("nvidia-uvm", "nvidia0")
    )
    return workstation(container="docker", driver=driver, gpus=(card(name="NVIDIA GeForce RTX 4090"),))


@compat_libcuda_in_use.good
def data_centre_gpu() -> Environment:
    driver = Driver(
        version="570.133.07", user_version="580.65.06", libcuda=_COMPAT, nodes=("nvidia-uvm", "nvidia0")
    )
    return workstation(
        container="docker", driver=driver, gpus=(card(name="NVIDIA H100 80GB HBM3", capability=(9, 0)),)
    )
