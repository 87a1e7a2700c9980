"""GPUs that are there and hidden by an environment variable."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.evidence.visible_devices import VARIABLE, sees_nothing
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("gpu-hidden-by-environment", "ENV101")
def gpu_hidden_by_environment(environment: Environment) -> Iterator[Finding]:
    """The machine has NVIDIA GPUs, and CUDA_VISIBLE_DEVICES hides all of them.

    ## Why it matters
    Every program started from this shell sees no GPU: `torch.cuda.is_available()` is False and training goes
    on on the CPU. The variable is often left over in a shell profile, a job script or a container's
    definition, or set to a value that reads like a choice and leaves nothing, such as `all`
    (YanWenKun/ComfyUI-Docker#60) or SLURM's `NoDevFiles` (ray-project/ray#7014).

    ## How sure it is
    The GPUs are counted from the driver's own files and the value is read as torch reads it. Silent where
    there is no GPU. If the GPUs are hidden on purpose, ignore it.

    ## What to do
    `unset CUDA_VISIBLE_DEVICES`, or set it to the numbers of the GPUs, such as `0` or `0,1`.
    """
    value = environment.variables.get(VARIABLE)
    if value is None or not environment.gpus or not sees_nothing(value):
        return
    count = len(environment.gpus)
    if value == "NoDevFiles":
        fix = Fix("ask SLURM for GPUs", (f"--gres=gpu:{count}",))
    else:
        fix = Fix("take the variable away, or name the GPUs", (f"unset {VARIABLE}",))
    yield Finding(
        message=f'{VARIABLE} is "{value}": it hides {"the GPU" if count == 1 else f"all {count} GPUs"}',
        severity=Severity.ERROR,
        at=(VARIABLE,),
        measured={"value": value, "gpus": list(environment.gpus)},
        cause="the variable is set in the environment that this command was started from",
        fix=fix,
    )


@gpu_hidden_by_environment.bad
def emptied() -> Environment:
    return Environment(variables={VARIABLE: ""}, gpus=("NVIDIA H100 80GB HBM3",), driver="580.65.06")


@gpu_hidden_by_environment.good
def no_gpu_anyway() -> Environment:
    return Environment(variables={VARIABLE: ""})


@gpu_hidden_by_environment.good
def chosen() -> Environment:
    return Environment(variables={VARIABLE: "1"}, gpus=("NVIDIA L4", "NVIDIA L4"), driver="580.65.06")
