"""A single thread for many CPUs."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop

_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "SLURM_PROCID")


@rule("one-thread", "ENV406")
def one_thread(environment: Environment) -> Iterator[Finding]:
    """OMP_NUM_THREADS is 1 on a machine with many processors.

    ## Why it matters
    All CPU work, such as image preprocessing and training without a GPU, then uses one CPU
    (https://github.com/NVIDIA/enroot/issues/185). torchrun sets the variable for its children on purpose;
    left in a shell or an image it slows everything.

    ## Confidence and false positives
    It is for information, from eight CPUs on, when no launcher has started this shell. With several
    DataLoader workers one thread each may be right.

    ## What to do
    Unset it, or set it to the CPUs per process.
    """
    environment.need("variables", "host")
    variables = environment.variables
    name = next((name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if variables.get(name) == "1"), None)
    if name is None or environment.cpus < 8 or any(launcher in variables for launcher in _LAUNCHERS):
        return
    yield Finding(
        message=f"{name}=1: each process uses one of {environment.cpus} CPUs",
        severity=Severity.INFO,
        at=(name,),
        measured={name: "1", "processors": environment.cpus},
        cause="it is set in the environment that runs are started from",
        fix=Fix("unset the variable, or divide the CPUs among the processes", (f"unset {name}",)),
    )


@one_thread.bad
def left_in_the_image() -> Environment:
    return laptop(variables={"OMP_NUM_THREADS": "1"})


@one_thread.good
def under_torchrun() -> Environment:
    return laptop(variables={"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"})
