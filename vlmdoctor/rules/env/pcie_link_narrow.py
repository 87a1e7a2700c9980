"""A GPU on fewer PCIe lanes than its siblings."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation


@rule("pcie-link-narrow", "ENV211")
def pcie_link_narrow(environment: Environment) -> Iterator[Finding]:
    """A GPU runs on fewer PCIe lanes than others of the same model.

    ## Why it matters
    A card that is badly seated trains its link down: everything works, and copies to and from it take several
    times as long (https://github.com/NVIDIA/NVSentinel/issues/890,
    https://github.com/local-inference-lab/rtx6kpro/issues/88).

    ## How sure it is
    Only compared with other GPUs of the same model in the same machine, and only the width: the speed of an
    idle link is lowered to save power, and cloud machines report widths of their own. A warning, since a slot
    may simply have fewer lanes.

    ## What to do
    Seat the card anew, or see whether its slot has the lanes.
    """
    widths = {}
    for gpu in environment.gpus:
        if gpu.link_width:
            widths[gpu.name] = max(widths.get(gpu.name, 0), gpu.link_width)
    for index, gpu in enumerate(environment.gpus):
        if not gpu.link_width or gpu.link_width * 2 > widths[gpu.name]:
            continue
        yield Finding(
            message=f"GPU {index} has {gpu.link_width} PCIe lanes, its sibling has {widths[gpu.name]}",
            severity=Severity.WARNING,
            at=(f"GPU {index}", gpu.bus or ""),
            measured={"lanes": gpu.link_width},
            threshold={"lanes": widths[gpu.name]},
            cause="the link was trained down, or the slot has fewer lanes",
            fix=Fix("seat the card anew, or move it to a slot with all lanes"),
        )


@pcie_link_narrow.bad
def badly_seated() -> Environment:
    return workstation(gpus=(card(), card(1, link_width=4)))


@pcie_link_narrow.good
def cloud_machine_with_half_the_lanes() -> Environment:
    return workstation(gpus=(card(link_width=8), card(1, link_width=8)))
