"""A Python for Intel on an Apple processor."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop


@rule("python-under-rosetta", "ENV309")
def python_under_rosetta(environment: Environment) -> Iterator[Finding]:
    """Python for Intel (x86_64) under Rosetta on an Apple processor.

    ## Why it matters
    It is slow, it gets another version of macOS, so torch refuses bf16 on the GPU
    (https://github.com/pytorch/pytorch/issues/146236), and the last torch that was released for Intel Macs is
    2.2.2: newer versions can't be installed.

    ## Confidence and false positives
    The kernel reports the processor, and Python its own architecture. It is a warning, since it works,
    slowly.

    ## What to do
    Install a Python for arm64 (from python.org, Homebrew in /opt/homebrew, or Miniforge), and a new
    environment with it.
    """
    if environment.platform != "Darwin x86_64" or "Apple" not in (environment.other_accelerator or ""):
        return
    yield Finding(
        message="this Python is for Intel processors and runs translated on an Apple one",
        severity=Severity.WARNING,
        at=("Python",),
        measured={"python": f"{environment.python} x86_64".strip(), "processor": "Apple, arm64"},
        threshold={"python": "arm64"},
        cause="it was installed for x86_64, often through an old Anaconda or Homebrew",
        fix=Fix(
            "install a Python for arm64 and create the environment again",
            ("brew install miniforge", "CONDA_SUBDIR=osx-arm64 conda create -n train python=3.12"),
        ),
    )


@python_under_rosetta.bad
def an_old_anaconda() -> Environment:
    return laptop(platform="Darwin x86_64", pci=None, other_accelerator="an Apple GPU", kernel=None)


@python_under_rosetta.good
def native() -> Environment:
    return laptop(platform="Darwin arm64", pci=None, other_accelerator="an Apple GPU", kernel=None)


@python_under_rosetta.good
def an_intel_mac() -> Environment:
    return laptop(platform="Darwin x86_64", pci=None, kernel=None)
