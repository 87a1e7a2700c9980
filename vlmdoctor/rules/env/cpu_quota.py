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
    """The container may use less processor time than the processors that it shows.

    ## Why it matters
    `os.cpu_count()` and the affinity tell of all processors of the machine, and so many DataLoader workers
    are started; the quota then stops them all for most of the time
    (https://github.com/springfall2008/batpred/issues/4771, https://github.com/python/cpython/issues/80235).

    ## How sure it is
    Quota and affinity are measured. Such a quota is usual in Kubernetes: a remark, and a warning where less
    than two processors' time is left per GPU.

    ## What to do
    Choose the workers by the quota: `num_workers` per GPU at most its share.
    """
    environment.need("host")
    host = environment.host
    if host is None or host.quota is None or host.quota > 0.75 * host.cpus:
        return
    gpus = max(1, len(environment.gpus))
    starved = bool(environment.gpus) and host.quota < 2 * gpus
    yield Finding(
        message=f"of {host.cpus} processors this container may use the time of {host.quota:g}",
        severity=Severity.WARNING if starved else Severity.INFO,
        at=("cpu.max",),
        measured={"quota": host.quota, "shown": host.cpus},
        cause="the control group limits the processor time",
        fix=Fix(f"use num_workers={max(1, int(host.quota / gpus))} per GPU, or ask for more processors"),
    )


@cpu_quota.bad
def two_processors_for_two_gpus() -> Environment:
    return workstation(container="kubernetes", host=dataclasses.replace(HOST, cpus=96, quota=2.0))


@cpu_quota.good
def all_that_is_shown() -> Environment:
    return laptop(container="docker", host=dataclasses.replace(HOST, cpus=8, quota=8.0))
