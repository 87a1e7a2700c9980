"""Variables from debugging that slow every run down."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop, workstation

SLOWS = {
    "CUDA_LAUNCH_BLOCKING": "every kernel launch blocks (a debug setting; slow)",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "each tensor is allocated by the driver (slow)",
    "TORCH_CUDA_SANITIZER": "each kernel is checked for races (slow)",
    "TORCH_DISTRIBUTED_DEBUG": "every collective is checked (slow)",
}
OFF = ("", "0", "off", "false", "info")


@rule("debugging-left-on", "ENV404")
def debugging_left_on(environment: Environment) -> Iterator[Finding]:
    """Debug setting left on: it makes every run slower.

    ## Why it matters
    With CUDA_LAUNCH_BLOCKING=1 every kernel launch blocks: a run can take several times as long
    (https://github.com/ByteDance-Seed/VeOmni/issues/115,
    https://github.com/jishengpeng/WavTokenizer/issues/17). TORCH_DISTRIBUTED_DEBUG=DETAIL checks every
    collective; with PYTORCH_NO_CUDA_MEMORY_CACHING the driver allocates each tensor.

    ## Confidence and false positives
    The variables are set for every program that this shell starts. It is a warning, since it may be intended
    right now. Nothing is reported without a GPU.

    ## What to do
    Unset the variable in this shell after debugging.
    """
    environment.need("variables")
    if not environment.gpus:
        return
    for name, effect in SLOWS.items():
        value = environment.variables.get(name, "")
        if value.lower() in OFF:
            continue
        yield Finding(
            message=f"debug setting {name}={value} is left on: {effect}",
            severity=Severity.WARNING,
            at=(name,),
            measured={"value": value},
            cause="it is set in the environment that runs are started from",
            fix=Fix("unset the variable", (f"unset {name}",)),
        )


@debugging_left_on.bad
def blocking() -> Environment:
    return workstation(variables={"CUDA_LAUNCH_BLOCKING": "1"})


@debugging_left_on.good
def switched_off() -> Environment:
    return workstation(variables={"CUDA_LAUNCH_BLOCKING": "0"})


@debugging_left_on.good
def no_gpu() -> Environment:
    return laptop(variables={"CUDA_LAUNCH_BLOCKING": "1"})
