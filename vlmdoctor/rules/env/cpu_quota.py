"""A quota of processor time below what the processors suggest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import HOST, laptop, workstation


@rule("cpu-quota", "ENV503")
def cpu_quota(environment: Environment) -> Iterator[Finding]:
    """CPU quota of the container below the number of processors.

    ## Why it matters
    `os.cpu_count()` and the affinity give all CPUs of the machine, and that many DataLoader workers are
    started; the quota then throttles them all for most of the time
    (https://github.com/springfall2008/batpred/issues/4771, https://github.com/python/cpython/issues/80235).

    ## Confidence and false positives
    Quota and affinity are measured. Such a quota is usual in Kubernetes, so it is for information, and a
    warning where fewer than two CPUs are left per GPU.

    ## What to do
    Set the number of workers by the quota: `num_workers` per GPU at most its share.
    """
    environment.need("host")
    host = environment.host
    if host is None or host.quota is None or host.quota > 0.75 * host.cpus:
        return
    gpus = max(1, len(environment.gpus))
    starved = bool(environment.gpus) and host.quota < 2 * gpus
    yield Finding(
        message=f"CPU quota: this container may use {host.quota:g} of {host.cpus} CPUs",
        severity=Severity.WARNING if starved else Severity.INFO,
        at=("cpu.max",),
        measured={"quota": host.quota, "shown": host.cpus},
        cause="the control group limits the CPU time",
        fix=Fix(f"use num_workers={max(1, int(host.quota / gpus))} per GPU, or request more CPUs"),
    )


@cpu_quota.bad
def two_processors_for_two_gpus() -> Environment:
    return workstation(container="kubernetes", host=dataclasses.replace(HOST, cpus=96, quota=2.0))


@cpu_quota.good
def all_that_is_shown() -> Environment:
    return laptop(container="docker", host=dataclasses.replace(HOST, cpus=8, quota=8.0))
