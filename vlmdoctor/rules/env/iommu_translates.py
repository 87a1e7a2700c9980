"""An IOMMU between GPUs that communicate directly."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, PciGpu
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation


@rule("iommu-translates", "ENV219")
def iommu_translates(environment: Environment) -> Iterator[Finding]:
    """IOMMU translates addresses between several GPUs without NVLink.

    ## Why it matters
    With a translating IOMMU, direct traffic between GPUs is redirected or lost: NCCL hangs with all GPUs at
    100% (https://github.com/NVIDIA/nccl/issues/2079, https://github.com/ROCm/rccl/issues/1129).

    ## Confidence and false positives
    The kind of translation is read from the kernel per GPU. Many such machines work, so it is for
    information, for the case that NCCL hangs. Nothing is reported for one GPU, with NVLink, in a container
    and in a virtual machine's guest without an IOMMU.

    ## What to do
    If NCCL hangs: boot with iommu=pt, or switch ACS off in the firmware.
    """
    environment.need("pci")
    translated = [
        gpu.bus
        for gpu in environment.pci or ()
        if gpu.vendor == "nvidia" and (gpu.iommu or "").startswith("DMA")
    ]
    linked = any(gpu.nvlinks for gpu in environment.gpus)
    if len(environment.gpus) < 2 or len(translated) < 2 or linked or environment.container is not None:
        return
    if environment.variables.get("NCCL_P2P_DISABLE") == "1":
        return
    yield Finding(
        message="the IOMMU translates between GPUs on PCIe: a known cause if NCCL hangs",
        severity=Severity.INFO,
        at=tuple(translated),
        measured={"iommu": "translating", "nvlinks": 0},
        cause="direct traffic between GPUs is redirected through the IOMMU",
        fix=Fix(
            "only if NCCL hangs: boot with iommu=pt, or disable peer-to-peer", ("export NCCL_P2P_DISABLE=1",)
        ),
    )


def _pci(kind: str) -> tuple[PciGpu, ...]:
    return tuple(
        PciGpu(bus=f"0000:{bus}:00.0", vendor="nvidia", driver="nvidia", iommu=kind) for bus in (17, 18)
    )


@iommu_translates.bad
def translating() -> Environment:
    return workstation(pci=_pci("DMA-FQ"))


@iommu_translates.good
def passing_through() -> Environment:
    return workstation(pci=_pci("identity"))


@iommu_translates.good
def joined_by_nvlink() -> Environment:
    return workstation(pci=_pci("DMA-FQ"), gpus=(card(nvlinks=12), card(1, nvlinks=12)))
