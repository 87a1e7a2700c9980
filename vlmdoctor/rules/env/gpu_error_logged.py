"""A failing GPU in the kernel's log."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Xid
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.xid import HARDWARE
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import workstation


@rule("gpu-error-logged", "ENV220")
def gpu_error_logged(environment: Environment) -> Iterator[Finding]:
    """GPU failure (Xid) in the kernel log.

    ## Why it matters
    A GPU that fell off the bus (Xid 79), whose firmware stopped answering (119, 120) or whose memory fails
    (48, 64, 95) takes every run with it sooner or later: "unspecified launch failure", "uncorrectable ECC
    error", "Unable to determine the device handle" (https://github.com/leptonai/gpud/issues/1209,
    https://github.com/rwth-i6/returnn/issues/1486).

    ## Confidence and false positives
    The log since the machine was started, where this user may read it (/dev/kmsg). Only codes of the GPU, its
    firmware or its links are reported, not those that programs cause (13, 31, 43, 45). The GPU may have been
    reset since, so it is a warning. Nothing is reported where the log can't be read.

    ## What to do
    Reset the GPU or restart the machine; replace the GPU if the error comes again.
    """
    by_bus: dict[str, list[Xid]] = {}
    for xid in environment.xids:
        if xid.code in HARDWARE:
            by_bus.setdefault(xid.bus, []).append(xid)
    if not by_bus:
        return
    worst = next(iter(by_bus.values()))[0]
    others = f" ({len(by_bus)} GPUs failed)" if len(by_bus) > 1 else ""
    yield Finding(
        message=f"GPU failure in the kernel log: GPU {worst.bus}, Xid {worst.code}, "
        f"{HARDWARE[worst.code]}{others}",
        severity=Severity.WARNING,
        at=tuple(by_bus),
        measured={"xid": sorted({xid.code for found in by_bus.values() for xid in found}), "log": worst.text},
        cause="the GPU, its link or its firmware failed since the machine was started",
        fix=Fix(
            "reset the GPU when nothing runs on it, or restart the machine",
            ("sudo dmesg | grep -i xid", "sudo nvidia-smi --gpu-reset", "sudo reboot"),
        ),
    )


@gpu_error_logged.bad
def firmware_does_not_answer() -> Environment:
    text = "pid=4711, name=python, Timeout after 6s of waiting for RPC response from GPU0 GSP!"
    return workstation(xids=(Xid(code=119, bus="0000:17:00", text=text),))


@gpu_error_logged.good
def a_program_s_own_mistake() -> Environment:
    return workstation(xids=(Xid(code=31, bus="0000:17:00", text="pid=4711, name=python, MMU Fault"),))
