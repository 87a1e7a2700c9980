"""A low limit of open files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import HOST, laptop, workstation


@rule("open-files-low", "ENV502")
def open_files_low(environment: Environment) -> Iterator[Finding]:
    """Limit of open files too low for many DataLoader workers.

    ## Why it matters
    Each tensor that a worker passes to the main process holds a file open: "received 0 items of ancdata",
    "Too many open files" (https://github.com/pytorch/pytorch/issues/973).

    ## Confidence and false positives
    The soft limit of this process is read. Below 1024 it is a warning; the usual 1024 is for information, on
    a machine with a GPU only.

    ## What to do
    Raise the soft limit in the shell that starts the run.
    """
    environment.need("host")
    soft = environment.host.open_files if environment.host else None
    if soft is None or soft >= 4096 or (soft >= 1024 and not environment.gpus):
        return
    hard = environment.host.open_files_hard if environment.host else None
    yield Finding(
        message=f"the limit of open files is {soft}: too low for many DataLoader workers",
        severity=Severity.WARNING if soft < 1024 else Severity.INFO,
        at=("ulimit -n",),
        measured={"soft": soft, "hard": hard if hard is not None else "no limit"},
        threshold={"soft": ">= 4096"},
        cause="it is the system's default" if soft == 1024 else "it was lowered from the default",
        fix=Fix("raise the limit", (f"ulimit -n {min(hard or 65536, 65536)}",)),
    )


def _with_files(soft: int) -> Environment:
    return workstation(host=dataclasses.replace(HOST, open_files=soft))


@open_files_low.bad
def lowered() -> Environment:
    return _with_files(256)


@open_files_low.good
def raised() -> Environment:
    return _with_files(65536)


@open_files_low.good
def laptop_with_the_default() -> Environment:
    return laptop(host=dataclasses.replace(HOST, open_files=1024))
