"""A setting of NCCL that does not match the GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Driver, Environment, Torch
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.versions import numbers
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation

VARIABLE = "NCCL_P2P_DISABLE"


@rule("peer-to-peer-setting", "ENV218")
def peer_to_peer_setting(environment: Environment) -> Iterator[Finding]:
    """NCCL peer-to-peer disabled on NVLink, or enabled where the driver can't do it.

    ## Why it matters
    With NCCL_P2P_DISABLE=1, copied from another machine, GPUs with NVLink communicate through the host's
    memory. GeForce RTX 40 cards can't do peer-to-peer, and accelerate stops with NotImplementedError unless
    the driver is newer (https://github.com/QwenLM/Qwen-VL/issues/447,
    https://github.com/OpenBMB/MiniCPM-V/issues/325, https://github.com/huggingface/accelerate/issues/2328).

    ## Confidence and false positives
    NVLinks, models and the driver's version are NVML's. `accelerate launch` sets the variables itself;
    torchrun or python does not, so it is a warning.

    ## What to do
    Unset the variable on a machine with NVLink; on RTX 40 cards with an old driver, set it.
    """
    environment.need("variables")
    if len(environment.gpus) < 2:
        return
    off = environment.variables.get(VARIABLE) == "1"
    if off and all(gpu.nvlinks for gpu in environment.gpus):
        yield Finding(
            message=f"{VARIABLE}=1 on GPUs with NVLink",
            severity=Severity.WARNING,
            at=(VARIABLE,),
            measured={"nvlinks": environment.gpus[0].nvlinks},
            cause="the variable makes NCCL copy through the host's memory",
            fix=Fix("unset the variable", (f"unset {VARIABLE}",)),
        )
    version = numbers((environment.driver.version or "") if environment.driver else "")
    cards = any("RTX 40" in gpu.name for gpu in environment.gpus)
    if cards and not off and version and version < (550, 40, 7) and "accelerate" in environment.packages:
        yield Finding(
            message="GeForce RTX 40 cards can't do peer-to-peer with this driver",
            severity=Severity.WARNING,
            at=(VARIABLE, "NCCL_IB_DISABLE"),
            measured={"driver": environment.driver.version if environment.driver else None},
            threshold={"driver": ">= 550.40.07"},
            cause="accelerate stops with NotImplementedError unless peer-to-peer is switched off",
            fix=Fix(
                "switch peer-to-peer off, or start with accelerate launch",
                ("export NCCL_P2P_DISABLE=1 NCCL_IB_DISABLE=1",),
            ),
        )


@peer_to_peer_setting.bad
def off_on_nvlink() -> Environment:
    return workstation(gpus=(card(nvlinks=12), card(1, nvlinks=12)), variables={VARIABLE: "1"})


@peer_to_peer_setting.bad
def geforce_cards() -> Environment:
    cards = tuple(card(i, name="NVIDIA GeForce RTX 4090") for i in range(2))
    driver = Driver(version="535.183.01", user_version="535.183.01", nodes=("nvidia-uvm", "nvidia0"))
    return workstation(
        gpus=cards,
        driver=driver,
        torch=Torch(version="2.5.1+cu121", cuda="12.1", archs=("sm_86",)),
        packages={"accelerate": "1.15.0"},
    )


@peer_to_peer_setting.good
def off_without_nvlink() -> Environment:
    return workstation(variables={VARIABLE: "1"})
