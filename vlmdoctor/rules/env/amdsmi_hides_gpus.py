"""Two copies of AMD's management library in one process."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Torch
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop


@rule("amdsmi-hides-gpus", "ENV109")
def amdsmi_hides_gpus(environment: Environment) -> Iterator[Finding]:
    """amdsmi installed beside a torch for ROCm that brings the same library.

    ## Why it matters
    torch asks amdsmi how many GPUs there are. Two different copies of libamd_smi in one process answer 0, and
    `torch.cuda.device_count()` is 0 though HIP sees the GPUs
    (https://github.com/pytorch/pytorch/issues/186516).

    ## Confidence and false positives
    Both packages are installed: amdsmi and ROCm's own wheels (rocm-sdk-core). Whether this version of torch
    is still affected was not tried, so it is a warning.

    ## What to do
    Remove the package amdsmi; torch then asks HIP itself how many GPUs there are.
    """
    environment.need("packages", "torch")
    packages = environment.packages
    if environment.torch is None or not environment.torch.hip:
        return
    if "amdsmi" not in packages or "rocm-sdk-core" not in packages:
        return
    yield Finding(
        message="amdsmi is installed beside ROCm's own wheels: torch may count 0 GPUs",
        severity=Severity.WARNING,
        at=("amdsmi", "rocm-sdk-core"),
        measured={"amdsmi": packages["amdsmi"], "rocm-sdk-core": packages["rocm-sdk-core"]},
        cause="each brings a libamd_smi, and the one that is loaded first is used for both",
        fix=Fix("remove the package that torch does not need", ("pip uninstall amdsmi",)),
    )


def _amd(**packages: str) -> Environment:
    torch = Torch(version="2.13.0+rocm7.1", hip="7.1.25424", archs=())
    return laptop(torch=torch, packages=packages, other_accelerator="an AMD GPU")


@amdsmi_hides_gpus.bad
def both() -> Environment:
    return _amd(**{"amdsmi": "7.1.0", "rocm-sdk-core": "7.1.0"})


@amdsmi_hides_gpus.good
def torch_s_own() -> Environment:
    return _amd(**{"rocm-sdk-core": "7.1.0"})
