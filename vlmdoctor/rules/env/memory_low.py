"""Too little memory to train anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import GIB, HOST, laptop


@rule("memory-low", "ENV505")
def memory_low(environment: Environment) -> Iterator[Finding]:
    """Low host memory, or a low memory limit of the container.

    ## Why it matters
    The process is killed ("Killed", exit status 137), often while a checkpoint is loaded, which needs the
    host's memory.

    ## Confidence and false positives
    The memory that is available now, with the control group's limit. Below 2 GiB it is a warning. What the
    model needs is not known here: see `vlmdoctor check TARGET --depth shapes`.

    ## What to do
    End other programs, or raise the limit of the container's memory.
    """
    environment.need("host")
    host = environment.host
    if host is None or host.available is None or host.available >= 2 * GIB:
        return
    yield Finding(
        message=f"low memory: {host.available / GIB:.1f} GiB are left",
        severity=Severity.WARNING,
        at=("memory",),
        measured={
            "available_gib": round(host.available / GIB, 1),
            "total_gib": round((host.memory or 0) / GIB, 1),
        },
        threshold={"available_gib": ">= 2"},
        cause="other programs use it, or the container's limit is low",
        fix=Fix("end other programs, or raise the limit", ("free -h",)),
    )


@memory_low.bad
def a_small_container() -> Environment:
    return laptop(container="docker", host=dataclasses.replace(HOST, memory=2 * GIB, available=GIB // 2))


@memory_low.good
def enough() -> Environment:
    return laptop()
