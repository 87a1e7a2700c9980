"""A multi-process service that is asked for and does not run."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Mps
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import workstation


@rule("mps-not-running", "ENV221", explains=("cuda-does-not-start",))
def mps_not_running(environment: Environment) -> Iterator[Finding]:
    """CUDA_MPS_PIPE_DIRECTORY asks for NVIDIA's multi-process service, and no daemon listens there.

    ## Why it matters
    With a socket that a daemon has left behind, CUDA fails with "MPS client failed to connect to the MPS
    control daemon" (805, https://github.com/NVIDIA/nvidia-container-toolkit/issues/714) or "all CUDA-capable
    devices are busy or unavailable" (https://github.com/NVIDIA/k8s-device-plugin/issues/647,
    https://github.com/ai-dynamo/nixl/issues/1041). Without any, programs run beside each other as if there
    were no such service, and in exclusive mode the second one is refused.

    ## How sure it is
    The folder is looked into for the daemon's socket, and, outside of containers, the processes for the
    daemon. Whether the service is wanted is not known: a warning. Silent about `/dev/null`, which keeps
    programs from using it.

    ## What to do
    Start the daemon, or take the variable away.
    """
    mps = environment.mps
    if mps is None or not environment.gpus or (mps.control and mps.daemon is not False):
        return
    yield Finding(
        message=f"CUDA_MPS_PIPE_DIRECTORY is {mps.folder}, and no MPS daemon listens there",
        severity=Severity.WARNING,
        at=("CUDA_MPS_PIPE_DIRECTORY",),
        measured={"socket": mps.control, "daemon": "not looked for" if mps.daemon is None else mps.daemon},
        cause="the daemon has ended and left its socket behind"
        if mps.control
        else "there is no socket of a daemon in that folder"
        if not mps.daemon
        else "the daemon that runs uses another folder",
        fix=Fix(
            "start the daemon, or do without it",
            ("nvidia-cuda-mps-control -d", "unset CUDA_MPS_PIPE_DIRECTORY"),
        ),
    )


@mps_not_running.bad
def left_over_from_yesterday() -> Environment:
    return workstation(mps=Mps(folder="/tmp/nvidia-mps", control=True, daemon=False))


@mps_not_running.bad
def not_passed_into_the_container() -> Environment:
    return workstation(container="docker", mps=Mps(folder="/tmp/nvidia-mps"))


@mps_not_running.good
def at_work() -> Environment:
    return workstation(mps=Mps(folder="/tmp/nvidia-mps", control=True, daemon=True))
