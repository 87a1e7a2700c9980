"""GPU indices that differ from those of nvidia-smi."""

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
    """GPU order of CUDA may differ from that of nvidia-smi.

    ## Why it matters
    CUDA counts the fastest GPU first, nvidia-smi counts by PCI bus: index 0 is a different GPU in each. The
    run uses the wrong GPU, while another one is monitored (https://github.com/pytorch/pytorch/issues/86539,
    https://github.com/ModelCloud/Device-SMI/issues/40).

    ## Confidence and false positives
    Reported where there is more than one model, an index is set in CUDA_VISIBLE_DEVICES, and
    CUDA_DEVICE_ORDER is not PCI_BUS_ID. Whether the two orders really differ on this machine is not known
    without starting CUDA. Nothing is reported when all GPUs are of one model.

    ## What to do
    `export CUDA_DEVICE_ORDER=PCI_BUS_ID`: CUDA then counts as nvidia-smi does.
    """
    environment.need("variables")
    value = environment.variables.get(VARIABLE, "")
    models = {gpu.name for gpu in environment.gpus}
    if len(models) < 2 or environment.variables.get(ORDER) == "PCI_BUS_ID" or not value.strip()[:1].isdigit():
        return
    # With all GPUs selected, in whatever order, there is no doubt which are used.
    if len(value.strip(", ").split(",")) >= len(environment.gpus):
        return
    yield Finding(
        message=f'{VARIABLE} is "{value}", and the indices may differ from those of nvidia-smi',
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
