"""An NVLink fabric that is not ready."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Driver, Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import NODES, card, workstation


@rule("fabric-not-ready", "ENV207", explains=("cuda-does-not-start",))
def fabric_not_ready(environment: Environment) -> Iterator[Finding]:
    """NVSwitch fabric not ready: CUDA does not start.

    ## Why it matters
    On HGX and DGX machines the fabric manager has to set up the switches first. Until then every CUDA call
    fails with error 802, "system not yet initialized", also with a single GPU
    (https://github.com/pytorch/pytorch/issues/35710, https://github.com/pytorch/pytorch/issues/81549,
    https://github.com/huggingface/huggingface_hub/issues/4134).

    ## Confidence and false positives
    The state of the fabric is NVML's; or the switches' device file is there and no fabric manager runs, which
    is a warning only, since it may run outside the container.

    ## What to do
    Start the fabric manager in exactly the driver's version.
    """
    waiting = [gpu for gpu in environment.gpus if gpu.fabric in ("not-started", "in-progress")]
    driver = environment.driver
    idle = driver is not None and driver.fabric_manager is False and environment.container is None
    known = any(gpu.fabric for gpu in environment.gpus)
    if not waiting and not (idle and not known):
        return
    yield Finding(
        message="the NVLink fabric is not ready: CUDA fails with error 802"
        if waiting
        else "there are NVSwitches and no fabric manager runs",
        severity=Severity.ERROR if waiting else Severity.WARNING,
        at=("nvidia-fabricmanager",),
        measured={"fabric": waiting[0].fabric if waiting else "not known", "gpus": len(environment.gpus)},
        cause="the fabric manager has not set up the switches",
        fix=Fix(
            "start the fabric manager on the host; its version must be the driver's",
            ("sudo systemctl enable --now nvidia-fabricmanager",),
        ),
    )


@fabric_not_ready.bad
def after_boot() -> Environment:
    return workstation(gpus=(card(fabric="in-progress"), card(1, fabric="in-progress")))


@fabric_not_ready.bad
def no_fabric_manager() -> Environment:
    nodes = (*NODES, "nvidia-nvswitchctl")
    return workstation(
        driver=Driver(version="580.65.06", user_version="580.65.06", nodes=nodes, fabric_manager=False)
    )


@fabric_not_ready.good
def ready() -> Environment:
    return workstation(gpus=(card(fabric="completed"), card(1, fabric="completed")))
