"""Too little shared memory for DataLoader workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import GIB, HOST, laptop, workstation


@rule("shared-memory-small", "ENV501")
def shared_memory_small(environment: Environment) -> Iterator[Finding]:
    """Shared memory (/dev/shm) too small for DataLoader workers.

    ## Why it matters
    With workers a run dies of "Bus error… insufficient shared memory (shm)", or of a killed worker
    (https://github.com/pytorch/pytorch/issues/5040). Docker's default is 64 MB; batches of images need more.

    ## Confidence and false positives
    The size of the file system is measured. Up to 64 MB it is an error where there is a GPU, since a training
    with workers can't run; below 1 GB, or without a GPU, a warning: a run without workers needs none.

    ## What to do
    Start the container with more shared memory: `--shm-size=16g`, or `--ipc=host`.
    """
    environment.need("host")
    shm = environment.host.shm if environment.host else None
    if shm is None or shm >= GIB:
        return
    tiny = shm <= 64 * 1024**2
    yield Finding(
        message=f"/dev/shm holds {shm / 1024**2:.0f} MB: too small for DataLoader workers",
        severity=Severity.ERROR if tiny and environment.gpus else Severity.WARNING,
        at=("/dev/shm",),
        measured={"mb": round(shm / 1024**2)},
        threshold={"mb": ">= 1024"},
        cause="Docker's default is 64 MB" if tiny else "the system or the container was configured so",
        fix=Fix(
            "give the container more shared memory, or use num_workers=0",
            ("docker run --shm-size=16g …", "sudo mount -o remount,size=16g /dev/shm"),
        ),
    )


def _with_shm(megabytes: int) -> Environment:
    return workstation(container="docker", host=dataclasses.replace(HOST, shm=megabytes * 1024**2))


@shared_memory_small.bad
def as_docker_gives_it() -> Environment:
    return _with_shm(64)


@shared_memory_small.good
def enough() -> Environment:
    return _with_shm(16 * 1024)


@shared_memory_small.good
def no_such_thing() -> Environment:
    return laptop(host=dataclasses.replace(HOST, shm=None))
