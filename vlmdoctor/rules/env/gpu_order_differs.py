"""GPU numbers that mean other GPUs than those in nvidia-smi."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.visible_devices import VARIABLE
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation

ORDER = "CUDA_DEVICE_ORDER"


@rule("gpu-order-differs", "ENV104")
def gpu_order_differs(environment: Environment) -> Iterator[Finding]:
    """GPUs of different models are chosen by number, and CUDA counts them in another order than nvidia-smi.

    ## Why it matters
    CUDA counts the fastest GPU first, nvidia-smi by PCI bus: number 0 is the one in one list and another in
    the other. The run takes the wrong card, and somebody watches an idle one
    (https://github.com/pytorch/pytorch/issues/86539, https://github.com/ModelCloud/Device-SMI/issues/40).

    ## How sure it is
    Fires where there is more than one model, a number is chosen in CUDA_VISIBLE_DEVICES, and
    CUDA_DEVICE_ORDER is not PCI_BUS_ID. Whether the two orders really differ on this machine is not known
    without starting CUDA. Silent when all GPUs are of one model.

    ## What to do
    `export CUDA_DEVICE_ORDER=PCI_BUS_ID`, and CUDA counts as nvidia-smi does.
    """
    environment.need("variables")
    value = environment.variables.get(VARIABLE, "")
    models = {gpu.name for gpu in environment.gpus}
    if len(models) < 2 or environment.variables.get(ORDER) == "PCI_BUS_ID" or not value.strip()[:1].isdigit():
        return
    # A choice of all of them, in whatever order, leaves no doubt about which are used.
    if len(value.strip(", ").split(",")) >= len(environment.gpus):
        return
    yield Finding(
        message=f'{VARIABLE} is "{value}", and the numbers may not be those of nvidia-smi',
        severity=Severity.WARNING,
        at=(VARIABLE, ORDER),
        measured={"gpus": list(environment.names), "order": environment.variables.get(ORDER, "not set")},
        cause="without CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA counts the fastest GPU first",
        fix=Fix("count by PCI bus, as nvidia-smi does", (f"export {ORDER}=PCI_BUS_ID",)),
    )


@gpu_order_differs.bad
def a_display_card_beside_a_big_one() -> Environment:
    mixed = (card(0, name="NVIDIA T400"), card(1))
    return workstation(gpus=mixed, variables={VARIABLE: "1"})


@gpu_order_differs.good
def counted_by_bus() -> Environment:
    mixed = (card(0, name="NVIDIA T400"), card(1))
    return workstation(gpus=mixed, variables={VARIABLE: "1", ORDER: "PCI_BUS_ID"})


@gpu_order_differs.good
def one_model() -> Environment:
    return workstation(variables={VARIABLE: "1"})
