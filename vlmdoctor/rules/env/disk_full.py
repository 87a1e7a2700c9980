"""No room where training writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Folder
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import GIB, HOST, laptop, workstation

_VARIABLES = {"hub cache": "HF_HOME", "datasets cache": "HF_HOME", "temporary files": "TMPDIR"}


@rule("disk-full", "ENV504")
def disk_full(environment: Environment) -> Iterator[Finding]:
    """Disk full, nearly full, or not writable.

    ## Why it matters
    Writing the checkpoint fails after hours: "PytorchStreamWriter failed", "No space left on device", or
    Errno 122 for a quota (https://github.com/open-mmlab/mmdetection/issues/12069). Tools that measure the
    wrong volume miss it (https://github.com/h2oai/h2o-llmstudio/issues/214).

    ## Confidence and false positives
    Each folder is followed through links and variables to the disk that it is on: the working folder, the
    hub's and the data sets' caches, temporary files. Below 1 GiB, or without inodes, an error; below 10 GiB a
    warning; for temporary files and small caches a tenth of that. A cache that can't be written is a warning,
    the working folder is for information. Quotas can't be measured without writing.

    ## What to do
    Free space, or point the variable at another disk.
    """
    environment.need("host")
    reported = set()
    for folder in environment.host.folders if environment.host else ():
        message, severity = _judged(folder)
        # Several folders on one full disk are one fault.
        if message is None or (folder.free, folder.total, severity) in reported:
            continue
        reported.add((folder.free, folder.total, severity))
        variable = _VARIABLES.get(folder.use)
        yield Finding(
            message=message,
            severity=severity,
            at=(folder.resolved or folder.path,),
            measured={
                "use": folder.use,
                "free_gib": None if folder.free is None else round(folder.free / GIB, 1),
                "free_inodes": folder.inodes,
                "writable": folder.writable,
            },
            cause=f"{folder.use}: {folder.path} is on this disk",
            fix=Fix(
                "free space, or choose another disk",
                (f"export {variable}=/big/disk",) if variable else ("df -h",),
            ),
        )


def _judged(folder: Folder) -> tuple[str | None, Severity]:
    where = f"{folder.resolved or folder.path} ({folder.use})"
    if folder.writable is False:
        severity = Severity.INFO if folder.use == "work" else Severity.WARNING
        return f"{where} can't be written to", severity
    if folder.inodes == 0 or (folder.inodes is not None and 0 < folder.inodes < 1000):
        return f"{where} has no room for another file: its inodes are used up", Severity.ERROR
    # Temporary files and small caches need little: /tmp is often small on purpose.
    enough, least = (10 * GIB, GIB) if folder.use in ("work", "hub cache") else (GIB, GIB // 10)
    if folder.free is not None and folder.free < enough and folder.total != 0:
        severity = Severity.ERROR if folder.free < least else Severity.WARNING
        return f"{where} has {folder.free / GIB:.1f} GiB left", severity
    return None, Severity.INFO


def _with(folder: Folder) -> Environment:
    return workstation(host=dataclasses.replace(HOST, folders=(folder,)))


@disk_full.bad
def cache_on_a_small_disk() -> Environment:
    return _with(
        Folder(
            use="hub cache",
            path="/home/ann/.cache/huggingface/hub",
            resolved="/home",
            free=GIB // 2,
            total=40 * GIB,
            inodes=100_000,
            writable=True,
        )
    )


@disk_full.bad
def no_inodes() -> Environment:
    return _with(
        Folder(
            use="work",
            path="/work",
            resolved="/work",
            free=900 * GIB,
            total=1000 * GIB,
            inodes=0,
            writable=True,
        )
    )


@disk_full.good
def room() -> Environment:
    return laptop()
