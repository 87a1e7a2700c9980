"""GPUs that are hidden by an environment variable."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.visible_devices import VARIABLE, VisibleDevices, read
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop, workstation


@rule(
    "gpu-hidden-by-environment",
    "ENV101",
    explains=("visible-devices-misread", "gpu-order-differs", "cuda-does-not-start"),
)
def gpu_hidden_by_environment(environment: Environment) -> Iterator[Finding]:
    """All GPUs hidden by CUDA_VISIBLE_DEVICES.

    ## Why it matters
    Every program started from this shell sees no GPU: `torch.cuda.is_available()` is False and training
    continues on the CPU. The variable is often left over in a shell profile, a job script or a container's
    definition, or set to a value that looks valid and leaves no GPU: `all`
    (https://github.com/YanWenKun/ComfyUI-Docker/issues/60), SLURM's `NoDevFiles`
    (https://github.com/ray-project/ray/issues/7014), a number that this machine does not have
    (https://github.com/thuml/Autoformer/issues/25, https://github.com/pytorch/examples/issues/115), quotes or
    brackets that were kept, or a GPU named twice.

    ## Confidence and false positives
    The GPUs are counted from the driver and the value is parsed, entry by entry, as torch parses it; the
    parser is tested against torch's own. Nothing is reported where there is no GPU. If the GPUs are hidden on
    purpose, ignore it.

    ## What to do
    `unset CUDA_VISIBLE_DEVICES`, or set it to the numbers of the GPUs, such as `0` or `0,1`.
    """
    environment.need("variables")
    value = environment.variables.get(VARIABLE)
    if value is None or not environment.gpus:
        return
    reading = read(value, len(environment.gpus), [gpu.uuid or "" for gpu in environment.gpus])
    if not reading.crashes and reading.visible != ():
        return
    count = len(environment.gpus)
    hides = "the GPU" if count == 1 else f"all {count} GPUs"
    yield Finding(
        message=f'{VARIABLE} is "{value}": torch raises ValueError on it'
        if reading.crashes
        else f'{VARIABLE} is "{value}": it hides {hides}',
        severity=Severity.ERROR,
        at=(VARIABLE,),
        measured={"value": value, "entries": entries(reading), "gpus": list(environment.names)},
        cause=_cause(value),
        fix=_fix(reading, count),
    )


def entries(reading: VisibleDevices) -> list[str]:
    """Each entry of the value, and what torch makes of it."""
    return [f"'{entry.text}': {entry.fate}" for entry in reading.entries]


def _cause(value: str) -> str:
    if value == "NoDevFiles":
        return "SLURM set it, since the job was allocated no GPU"
    if value.strip().lower() in ("all", "none", "void"):
        return f"'{value}' has a meaning for NVIDIA_VISIBLE_DEVICES only"
    return "the variable is set in the environment that this command was started from"


def _fix(reading: VisibleDevices, count: int) -> Fix:
    if reading.value == "NoDevFiles":
        return Fix("ask SLURM for GPUs when submitting the job", (f"sbatch --gres=gpu:{count} job.sh",))
    if reading.meant not in (None, "unset"):
        return Fix("did you mean", (f"export {VARIABLE}={reading.meant}",))
    return Fix("unset the variable, or name the GPUs", (f"unset {VARIABLE}",))


@gpu_hidden_by_environment.bad
def emptied() -> Environment:
    return workstation(variables={VARIABLE: ""})


@gpu_hidden_by_environment.bad
def two_digits_for_two_gpus() -> Environment:
    return workstation(variables={VARIABLE: "10"})


@gpu_hidden_by_environment.good
def no_gpu_anyway() -> Environment:
    return laptop(variables={VARIABLE: ""})


@gpu_hidden_by_environment.good
def chosen() -> Environment:
    return workstation(variables={VARIABLE: "1"})
