"""GPUs with MIG instances, of which a process can use one."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.visible_devices import VARIABLE
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation


@rule("mig-instance-choice", "ENV106", explains=("cuda-does-not-start",))
def mig_instance_choice(environment: Environment) -> Iterator[Finding]:
    """MIG mode without an instance, or several MIG instances for one process.

    ## Why it matters
    In MIG mode a GPU itself can't run anything: without an instance CUDA finds no device. CUDA gives a
    process one MIG instance, however many CUDA_VISIBLE_DEVICES lists
    (https://github.com/pytorch/pytorch/issues/92315).

    ## Confidence and false positives
    The mode and the instances are NVML's. In a container, instances that were not passed in are not listed
    and can't be used either. Several instances in the variable are a warning: a launcher may distribute them.

    ## What to do
    Create an instance, or switch MIG off; list one instance per process.
    """
    environment.need("nvml")
    split = [gpu for gpu in environment.gpus if gpu.mig]
    if environment.nvml is None or environment.nvml.state != "answered":
        return
    if split and len(split) == len(environment.gpus) and not any(gpu.mig_devices for gpu in split):
        yield Finding(
            message="MIG mode is on without a MIG instance: CUDA finds no device",
            severity=Severity.ERROR,
            at=tuple(gpu.name for gpu in split),
            measured={"mig": True, "instances": 0},
            cause="a GPU in MIG mode runs nothing outside an instance",
            fix=Fix(
                "create an instance of the whole GPU, or switch MIG off",
                ("sudo nvidia-smi mig -cgi 0 -C", "sudo nvidia-smi -mig 0"),
            ),
        )
    chosen = [
        entry for entry in environment.variables.get(VARIABLE, "").split(",") if entry.startswith("MIG-")
    ]
    if len(chosen) > 1:
        yield Finding(
            message=f"{VARIABLE} lists {len(chosen)} MIG instances, and a process can use one",
            severity=Severity.WARNING,
            at=(VARIABLE,),
            measured={"instances": len(chosen)},
            cause="CUDA gives a process the first instance only",
            fix=Fix("start one process per instance", (f"{VARIABLE}={chosen[0]} python train.py",)),
        )


@mig_instance_choice.bad
def split_into_nothing() -> Environment:
    return workstation(gpus=(card(mig=True),))


@mig_instance_choice.bad
def two_instances() -> Environment:
    split = card(mig=True, mig_devices=("MIG-1c5b", "MIG-2d6c"))
    return workstation(gpus=(split,), variables={VARIABLE: "MIG-1c5b,MIG-2d6c"})


@mig_instance_choice.good
def one_instance() -> Environment:
    split = card(mig=True, mig_devices=("MIG-1c5b", "MIG-2d6c"))
    return workstation(gpus=(split,), variables={VARIABLE: "MIG-1c5b"})
