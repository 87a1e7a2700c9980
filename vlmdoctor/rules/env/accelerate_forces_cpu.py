"""A setting of accelerate or transformers that keeps a run from the GPU."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop, workstation

_TRUE = ("1", "true", "yes", "y", "on", "t")


@rule("accelerate-forces-cpu", "ENV107")
def accelerate_forces_cpu(environment: Environment) -> Iterator[Finding]:
    """accelerate is configured to train on the CPU of a machine that has a GPU.

    ## Why it matters
    `ACCELERATE_USE_CPU=true`, or `use_cpu: true` in the configuration that `accelerate config` once wrote,
    makes every Accelerator and every transformers Trainer that is launched by it use the CPU, on a machine
    even if that machine got its GPU later.

    ## Confidence and false positives
    The variable and the file are read; whether the next run uses accelerate at all is not known, hence a
    warning. Nothing is reported on a machine without a GPU.

    ## What to do
    Unset the variable, or run `accelerate config` again.
    """
    environment.need("variables", "accelerate_cpu")
    if not environment.gpus or "accelerate" not in environment.packages:
        return
    value = environment.variables.get("ACCELERATE_USE_CPU", "").lower()
    if value in _TRUE:
        place, fix = "ACCELERATE_USE_CPU", Fix("unset the variable", ("unset ACCELERATE_USE_CPU",))
    elif environment.accelerate_cpu:
        place, fix = environment.accelerate_cpu, Fix("configure accelerate again", ("accelerate config",))
    else:
        return
    yield Finding(
        message="accelerate is configured to train on the CPU, and there is a GPU",
        severity=Severity.WARNING,
        at=(place,),
        measured={"gpus": list(environment.names)},
        cause=f"{place} says so",
        fix=fix,
    )


@accelerate_forces_cpu.bad
def configured_before_the_gpu_came() -> Environment:
    path = "/home/ann/.cache/huggingface/accelerate/default_config.yaml"
    return workstation(packages={"accelerate": "1.15.0"}, accelerate_cpu=path)


@accelerate_forces_cpu.good
def no_gpu() -> Environment:
    return laptop(packages={"accelerate": "1.15.0"}, variables={"ACCELERATE_USE_CPU": "true"})
