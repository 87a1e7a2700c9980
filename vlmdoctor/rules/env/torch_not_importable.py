"""A torch that is missing, or that another module shadows."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Torch
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop, workstation


@rule("torch-not-importable", "ENV306")
def torch_not_importable(environment: Environment) -> Iterator[Finding]:
    """torch is not installed, is incomplete, or is shadowed by a file of the same name.

    ## Why it matters
    A file torch.py, or a folder torch, beside the script is imported instead of the library: "module 'torch'
    has no attribute…". An interrupted install leaves metadata without files.

    ## Confidence and false positives
    Read from the folders that Python searches, in their order. A missing torch is a warning only, since
    training may run in another environment than this command.

    ## What to do
    Rename the file that shadows torch, or install torch into this environment.
    """
    environment.need("torch")
    torch = environment.torch
    if torch is not None and torch.shadow is not None:
        message, cause = f"{torch.shadow} is imported instead of torch", "it is first in Python's search path"
        severity, fix = (
            Severity.ERROR,
            Fix("rename the file", (f"mv {torch.shadow} {torch.shadow}.renamed",)),
        )
    elif torch is None:
        message, cause = "torch is not installed here", "no folder that this Python searches has it"
        severity, fix = Severity.WARNING, Fix("install torch into this environment", ("pip install torch",))
    elif torch.folder is None and torch.recorded and "archs" not in environment.unseen:
        message, cause = (
            f"torch {torch.version} is recorded as installed, and its files are missing",
            "a broken install",
        )
        severity, fix = Severity.ERROR, Fix("reinstall torch", ("pip install --force-reinstall torch",))
    else:
        return
    yield Finding(
        message=message,
        severity=severity,
        at=("torch",),
        measured={"python": environment.python},
        cause=cause,
        fix=fix,
    )


@torch_not_importable.bad
def a_script_of_that_name() -> Environment:
    return laptop(torch=Torch(version="2.13.0+cpu", archs=(), shadow="/home/ada/project/torch.py"))


@torch_not_importable.bad
def not_there() -> Environment:
    return laptop(torch=None, packages={})


@torch_not_importable.good
def installed() -> Environment:
    return workstation()
