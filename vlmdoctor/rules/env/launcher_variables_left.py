"""Variables of a launcher, and no launcher."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop

_LAUNCHERS = (
    *("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "PET_NNODES"),
    *("LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"),
)


@rule("launcher-variables-left", "ENV403")
def launcher_variables_left(environment: Environment) -> Iterator[Finding]:
    """WORLD_SIZE is above 1, and no launcher is running.

    ## Why it matters
    The first use of torch.distributed waits silently for the other processes, for half an hour
    (https://github.com/pytorch/examples/issues/458). RANK and WORLD_SIZE are left over in a shell, or set by
    a cluster for other reasons.

    ## Confidence and false positives
    WORLD_SIZE is above 1, and this environment has no variable of torchrun, SLURM, MPI or Kubernetes'
    training operator. If the other processes are started by hand, that is right, so it is a warning.

    ## What to do
    Unset them in this shell, or start the training with torchrun.
    """
    environment.need("variables")
    variables = environment.variables
    size = variables.get("WORLD_SIZE", "")
    if not size.isdecimal() or int(size[:9]) < 2 or any(name in variables for name in _LAUNCHERS):
        return
    if environment.container == "kubernetes" and "MASTER_ADDR" in variables:
        return
    names = [
        name
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if name in variables
    ]
    yield Finding(
        message=f"WORLD_SIZE is {size}, and no launcher is running: training would wait",
        severity=Severity.WARNING,
        at=tuple(names),
        measured={name: variables[name] for name in names if name != "MASTER_ADDR"},
        cause="the variables are left over from an earlier start, or set by hand",
        fix=Fix("unset the variables, or start with torchrun", (f"unset {' '.join(names)}",)),
    )


@launcher_variables_left.bad
def left_in_the_shell() -> Environment:
    return laptop(variables={"RANK": "0", "WORLD_SIZE": "4"})


@launcher_variables_left.good
def under_torchrun() -> Environment:
    return laptop(variables={"RANK": "0", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none"})


@launcher_variables_left.good
def one_process() -> Environment:
    return laptop(variables={"RANK": "0", "WORLD_SIZE": "1"})
