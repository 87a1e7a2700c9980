"""A Linux kernel that accelerate warns about."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.versions import numbers
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop, workstation


@rule("kernel-old", "ENV506")
def kernel_old(environment: Environment) -> Iterator[Finding]:
    """Linux kernel older than 5.5, which accelerate warns about.

    ## Why it matters
    accelerate warns that such a kernel "can cause the process to hang"
    (https://github.com/modelscope/ms-swift/issues/283); many clusters run such kernels without problems, and
    the cause is disputed.

    ## Confidence and false positives
    The release is read. It is for information, on machines with a GPU: most runs work.

    ## What to do
    Nothing, unless a run hangs: then try a machine with a newer kernel.
    """
    version = numbers(environment.kernel or "")
    if (
        not version
        or version >= (5, 5)
        or not environment.platform.startswith("Linux")
        or not environment.gpus
    ):
        return
    # Red Hat keeps old numbers for kernels with backported fixes.
    if ".el" in (environment.kernel or "") and version >= (4, 18):
        return
    yield Finding(
        message=f"Linux {environment.kernel} is older than 5.5: accelerate warns that runs may hang",
        severity=Severity.INFO,
        at=("kernel",),
        measured={"kernel": environment.kernel},
        threshold={"kernel": ">= 5.5"},
        cause="the machine's system is old",
        fix=Fix("nothing, unless a run hangs"),
    )


@kernel_old.bad
def ubuntu_20() -> Environment:
    return workstation(kernel="5.4.0-193-generic")


@kernel_old.good
def red_hat_8() -> Environment:
    return workstation(kernel="4.18.0-553.8.1.el8_10.x86_64")


@kernel_old.good
def no_gpu() -> Environment:
    return laptop(kernel="5.4.0-193-generic")
