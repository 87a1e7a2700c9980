"""GPU memory that other programs use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmdoctor.evidence.environment import Environment, Gpu, Process
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.visible_devices import VARIABLE, read
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import GIB, card, workstation


@rule("gpu-memory-in-use", "ENV213")
def gpu_memory_in_use(environment: Environment) -> Iterator[Finding]:
    """GPU memory already in use before training starts.

    ## Why it matters
    The run dies of "CUDA out of memory" while loading, because an older run, a notebook or another user still
    holds the memory (https://github.com/qizhou000/VisEdit/issues/5,
    https://github.com/pytorch/pytorch/issues/5736).

    ## Confidence and false positives
    Measured by NVML now. It is a warning from a tenth of the memory on, or from 2 GiB, on a GPU that is
    visible to this environment. The programs are NVML's, or those that have the GPU's device file open.
    Memory without a visible program belongs to another user or container, or to a program that died.

    ## What to do
    End the programs that hold the memory, or choose another GPU.
    """
    value = environment.variables.get(VARIABLE)
    usable: Sequence[int] = range(len(environment.gpus))
    if value is not None:
        reading = read(value, len(environment.gpus), [gpu.uuid or "" for gpu in environment.gpus])
        usable = usable if reading.visible is None else reading.visible
    taken = [(i, gpu) for i in usable if _is_taken(gpu := environment.gpus[i])]
    if not taken:
        return
    programs = [
        f"{process.name or 'program'} ({process.pid})" for _, gpu in taken for process in gpu.processes or ()
    ]
    index, worst = max(taken, key=lambda found: found[1].used or 0)
    room = f"{(worst.used or 0) / GIB:.1f} of {(worst.memory or 0) / GIB:.0f} GiB"
    others = f" ({len(taken)} GPUs in all)" if len(taken) > 1 else ""
    yield Finding(
        message=f"GPU {index}: {room} already in use{others}",
        severity=Severity.WARNING,
        at=tuple(f"GPU {i}: {gpu.name}" for i, gpu in taken),
        measured={
            "used_gib": [round((gpu.used or 0) / GIB, 1) for _, gpu in taken],
            "programs": programs or "none visible",
        },
        cause="other programs hold it"
        if programs
        else "a program of another user or container holds it, or a program that died",
        fix=Fix("end these programs, or choose another GPU", ("nvidia-smi", f"fuser -v /dev/nvidia{index}")),
    )


def _is_taken(gpu: Gpu) -> bool:
    return bool(gpu.memory and gpu.used and gpu.used >= max(gpu.memory / 10, 2 * GIB))


@gpu_memory_in_use.bad
def a_notebook_holds_it() -> Environment:
    holder = Process(pid=4711, name="python", memory=30 * GIB)
    return workstation(gpus=(card(used=31 * GIB, processes=(holder,)), card(1)))


@gpu_memory_in_use.good
def another_gpu_was_chosen() -> Environment:
    return workstation(gpus=(card(used=31 * GIB), card(1)), variables={VARIABLE: "1"})


@gpu_memory_in_use.good
def the_desktop() -> Environment:
    return workstation(gpus=(card(used=GIB), card(1)))
