"""A NumPy that is too new for the installed torch."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Torch
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.versions import numbers
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import workstation


@rule("numpy-too-new", "ENV305")
def numpy_too_new(environment: Environment) -> Iterator[Finding]:
    """NumPy 2 installed with a torch that was built for NumPy 1.

    ## Why it matters
    torch says "_ARRAY_API not found" once, and `tensor.numpy()` and every image or dataset that goes through
    NumPy raises "Numpy is not available" (https://github.com/pytorch/pytorch/issues/135013).

    ## Confidence and false positives
    torch supports NumPy 2 from 2.3.0 on. On Windows 2.3 and 2.4.0 were reported to fail: there it is a
    warning.

    ## What to do
    Install a newer torch, or NumPy 1 beside this one.
    """
    environment.need("packages")
    torch, numpy = (
        numbers(environment.packages.get("torch", "")),
        numbers(environment.packages.get("numpy", "")),
    )
    if not torch or numpy < (2,):
        return
    on_windows = environment.platform.startswith("Windows") and torch < (2, 4, 1)
    if torch >= (2, 3) and not on_windows:
        return
    yield Finding(
        message=f"torch {environment.packages['torch']} can't use NumPy {environment.packages['numpy']}",
        severity=Severity.ERROR if torch < (2, 3) else Severity.WARNING,
        at=("numpy", "torch"),
        measured={"numpy": environment.packages["numpy"]},
        threshold={"numpy": "< 2"},
        cause="this torch was compiled against NumPy 1",
        fix=Fix("install NumPy 1, or a newer torch", ("pip install 'numpy<2'",)),
    )


@numpy_too_new.bad
def numpy_2_with_an_old_torch() -> Environment:
    torch = Torch(version="2.2.2+cu121", cuda="12.1", archs=("sm_80", "sm_86"))
    return workstation(torch=torch, packages={"torch": torch.version, "numpy": "2.1.3"})


@numpy_too_new.good
def numpy_1() -> Environment:
    torch = Torch(version="2.2.2+cu121", cuda="12.1", archs=("sm_80", "sm_86"))
    return workstation(torch=torch, packages={"torch": torch.version, "numpy": "1.26.4"})
