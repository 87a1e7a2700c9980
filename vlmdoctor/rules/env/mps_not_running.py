"""A multi-process service that is requested and not running."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Mps
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import workstation


@rule("mps-not-running", "ENV221", explains=("cuda-does-not-start",))
def mps_not_running(environment: Environment) -> Iterator[Finding]:
    """CUDA_MPS_PIPE_DIRECTORY is set, and no MPS daemon is running.

    ## Why it matters
    With a socket that an ended daemon left behind, CUDA fails with "MPS client failed to connect to the MPS
    control daemon" (805, https://github.com/NVIDIA/nvidia-container-toolkit/issues/714) or "all CUDA-capable
    devices are busy or unavailable" (https://github.com/NVIDIA/k8s-device-plugin/issues/647,
    https://github.com/ai-dynamo/nixl/issues/1041). Without a socket, programs run as if there were no such
    service, and in exclusive mode the second one is refused.

    ## Confidence and false positives
    The folder is searched for the daemon's socket, and, outside containers, the processes for the daemon.
    Whether the service is intended is not known, so it is a warning. `/dev/null` is not reported: it keeps
    programs from using the service.

    ## What to do
    Start the daemon, or unset the variable if no service is intended.
    """
    mps = environment.mps
    if mps is None or not environment.gpus or (mps.control and mps.daemon is not False):
        return
    yield Finding(
        message=f"CUDA_MPS_PIPE_DIRECTORY is {mps.folder}, and no MPS daemon is running there",
        severity=Severity.WARNING,
        at=("CUDA_MPS_PIPE_DIRECTORY",),
        measured={"socket": mps.control, "daemon": "not looked for" if mps.daemon is None else mps.daemon},
        cause="the daemon has ended and left its socket behind"
        if mps.control
        else "that folder has no socket of a daemon"
        if not mps.daemon
        else "the running daemon uses another folder",
        fix=Fix(
            "start the daemon, or unset the variable",
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
