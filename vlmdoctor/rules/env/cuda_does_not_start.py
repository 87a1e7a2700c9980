"""CUDA that does not start when it is tried."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Live
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop, workstation

_CODES = {
    2: "out of memory",
    3: "not initialised: often during a driver update",
    46: "the devices are busy or unavailable",
    100: "no device is visible",
    101: "the device number is not valid",
    802: "the NVLink fabric is not ready",
    803: "the kernel module and the libraries are of different versions",
    804: "forward compatibility is not supported on this GPU",
    999: "unknown error: often /dev/nvidia-uvm is missing",
}


@rule("cuda-does-not-start", "ENV217")
def cuda_does_not_start(environment: Environment) -> Iterator[Finding]:
    """CUDA does not start: `cuInit` fails in a process of its own.

    ## Why it matters
    The answer of the driver is worth more than anything read from files: torch gets what `cuInit` returns
    (https://github.com/deepspeedai/DeepSpeed/issues/2772 shows what happens to tools that try it in their own
    process).

    ## Confidence and false positives
    Measured, with `--live` only, or reported by torch in the output of collect_env. It is folded under the
    cause where one is known. Code 100 on a machine without a GPU is no fault.

    ## What to do
    See the meaning of the code in the finding; restart the machine if no other cause is named.
    """
    environment.need("live")
    live = environment.live
    if live is None or not environment.gpus or live.state in ("answered", "absent"):
        return
    if live.by_torch:
        what = "torch.cuda.is_available() is False"
    elif live.state == "refused":
        meaning = _CODES.get(live.code or 0, "see CUresult in the CUDA driver's documentation")
        what = f"cuInit returns {live.code}: {meaning}"
    else:
        what = f"cuInit {'does not return' if live.state == 'hung' else 'crashes'}"
    yield Finding(
        message=f"CUDA does not start: {what}",
        severity=Severity.ERROR,
        at=("libcuda.so.1",),
        measured={"state": live.state, "code": live.code},
        cause="torch reports it in the output of collect_env"
        if live.by_torch
        else "the driver reports it, tried in a process of its own",
        fix=Fix("look at the kernel's log, and restart the machine", ("sudo dmesg | tail -50",)),
    )


@cuda_does_not_start.bad
def unknown_error() -> Environment:
    return workstation(live=Live(state="refused", code=999))


@cuda_does_not_start.bad
def torch_says_so() -> Environment:
    return workstation(origin="a collect_env report", live=Live(state="refused", by_torch=True))


@cuda_does_not_start.good
def starts() -> Environment:
    return workstation(live=Live(state="answered", devices=2))


@cuda_does_not_start.good
def no_gpu() -> Environment:
    return laptop(live=Live(state="refused", code=100))
