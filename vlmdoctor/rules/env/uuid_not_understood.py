"""GPUs chosen by UUID, and a library that expects numbers."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.visible_devices import VARIABLE, read
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation

_READERS = ("vllm", "ray-lightning", "openrlhf")


@rule("uuid-not-understood", "ENV108")
def uuid_not_understood(environment: Environment) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES holds UUIDs, which an installed library reads as numbers.

    ## Why it matters
    torch and CUDA take UUIDs; libraries that call `int()` on the entries stop with "invalid literal for int()
    with base 10: 'GPU-…'" (https://github.com/vllm-project/vllm/issues/41848,
    https://github.com/vllm-project/vllm/issues/13815, https://github.com/OpenRLHF/OpenRLHF/issues/402).

    ## Confidence and false positives
    Reported only where one of these libraries is installed. Whether the run uses it, and whether its version
    still does so, is not known, so it is a warning.

    ## What to do
    Name the GPUs by their indices, in the order of nvidia-smi.
    """
    environment.need("variables", "packages")
    value = environment.variables.get(VARIABLE, "")
    libraries = [name for name in _READERS if name in environment.packages]
    if not value.startswith(("GPU-", "MIG-")) or not libraries or not environment.gpus:
        return
    visible = read(value, len(environment.gpus), [gpu.uuid or "" for gpu in environment.gpus]).visible
    numbers = ",".join(map(str, visible or ()))
    yield Finding(
        message=f"{VARIABLE} holds UUIDs, which {', '.join(libraries)} may try to read as numbers",
        severity=Severity.WARNING,
        at=(VARIABLE, *libraries),
        measured={"value": value},
        cause="the library calls int() on the entries",
        fix=Fix(
            "name the GPUs by index",
            (f"export CUDA_DEVICE_ORDER=PCI_BUS_ID {VARIABLE}={numbers}",) if numbers else (),
        ),
    )


@uuid_not_understood.bad
def vllm_and_a_uuid() -> Environment:
    return workstation(packages={"vllm": "0.11.0"}, variables={VARIABLE: "GPU-1f2e8c41"})


@uuid_not_understood.good
def torch_alone() -> Environment:
    return workstation(gpus=(card(0), card(1)), variables={VARIABLE: "GPU-1f2e8c41"})
