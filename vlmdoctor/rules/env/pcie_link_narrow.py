"""A GPU on fewer PCIe lanes than others of its model."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation


@rule("pcie-link-narrow", "ENV211")
def pcie_link_narrow(environment: Environment) -> Iterator[Finding]:
    """GPU on fewer PCIe lanes than others of the same model.

    ## Why it matters
    A card that is badly seated has a narrower link: everything works, and copies to and from it take several
    times as long (https://github.com/NVIDIA/NVSentinel/issues/890,
    https://github.com/local-inference-lab/rtx6kpro/issues/88).

    ## Confidence and false positives
    Only the width is compared, and only with other GPUs of the same model in the same machine: the speed of
    an idle link is lowered to save power, and cloud machines report other widths. It is a warning, since a
    slot may have fewer lanes.

    ## What to do
    Reseat the card, or check whether its slot has the lanes.
    """
    widths: dict[str, int] = {}
    for gpu in environment.gpus:
        if gpu.link_width:
            widths[gpu.name] = max(widths.get(gpu.name, 0), gpu.link_width)
    for index, gpu in enumerate(environment.gpus):
        if not gpu.link_width or gpu.link_width * 2 > widths[gpu.name]:
            continue
        yield Finding(
            message=f"GPU {index} has {gpu.link_width} PCIe lanes, expected {widths[gpu.name]} as on the "
            "others",
            severity=Severity.WARNING,
            at=(f"GPU {index}", gpu.bus or ""),
            measured={"lanes": gpu.link_width},
            threshold={"lanes": widths[gpu.name]},
            cause="the link was trained to fewer lanes, or the slot has fewer lanes",
            fix=Fix("reseat the card, or move it to a slot with all lanes"),
        )


@pcie_link_narrow.bad
def badly_seated() -> Environment:
    return workstation(gpus=(card(), card(1, link_width=4)))


@pcie_link_narrow.good
def cloud_machine_with_half_the_lanes() -> Environment:
    return workstation(gpus=(card(link_width=8), card(1, link_width=8)))
