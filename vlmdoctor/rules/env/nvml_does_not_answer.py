"""A driver that hangs or refuses."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Nvml
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop, workstation


@rule("nvml-does-not-answer", "ENV216", explains=("cuda-does-not-start",))
def nvml_does_not_answer(environment: Environment) -> Iterator[Finding]:
    """NVML does not answer: the NVIDIA driver hangs, crashes or refuses.

    ## Why it matters
    With a GPU that hangs, every program that asks for GPUs hangs: imports that never return, jobs that never
    start (https://github.com/vllm-project/vllm/issues/26774). This tool asks in a process of its own and
    continues.

    ## Confidence and false positives
    Measured: no answer within half a minute, a crash, or the driver's own error. A missing driver is not
    reported here.

    ## What to do
    Restart the machine; look for Xid in the kernel's log.
    """
    nvml = environment.nvml
    if nvml is None or nvml.state not in ("hung", "crashed", "refused"):
        return
    # 9 and 12: there is no driver, as in an image that brings the library alone.
    if nvml.state == "refused" and nvml.code in (9, 12):
        return
    yield Finding(
        message={
            "hung": "the NVIDIA driver does not answer",
            "crashed": "the NVIDIA driver crashes when it is asked for its GPUs",
            "refused": f"the NVIDIA driver refuses: {nvml.reason or 'no reason given'}",
        }[nvml.state],
        severity=Severity.ERROR,
        at=("NVIDIA driver",),
        measured={"state": nvml.state, "code": nvml.code},
        cause="a GPU hangs, or the driver is broken",
        fix=Fix(
            "look for Xid in the log, and restart the machine", ("sudo dmesg | grep -i xid", "sudo reboot")
        ),
    )


@nvml_does_not_answer.bad
def hangs() -> Environment:
    return workstation(
        nvml=Nvml(state="hung", reason="it did not answer"), unseen={"nvml": "it did not answer"}
    )


@nvml_does_not_answer.good
def answers() -> Environment:
    return workstation()


@nvml_does_not_answer.good
def the_library_without_a_driver() -> Environment:
    return laptop(container="docker", nvml=Nvml(state="refused", code=9, reason="Driver Not Loaded"))
