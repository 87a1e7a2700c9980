"""Two variables that select AMD GPUs, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Torch
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop

ROCR, HIP, CUDA = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"


@rule("rocm-masks-clash", "ENV105")
def rocm_masks_clash(environment: Environment) -> Iterator[Finding]:
    """ROCR_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES (or CUDA_VISIBLE_DEVICES) conflict.

    ## Why it matters
    The first one filters the GPUs and renumbers them, the second selects from the rest by the new numbers:
    `3` and `3` leave none (https://github.com/Parsl/parsl/issues/3858,
    https://github.com/mcmonkeyprojects/SwarmUI/issues/565). With more entries in the second than in the first
    torch raises RuntimeError.

    ## Confidence and false positives
    It is an error where a number in the second is not below the number of GPUs that the first one leaves, or
    the list is longer. Otherwise nothing is reported, since the two then work. Only a torch built for ROCm is
    judged.

    ## What to do
    Keep one of them; for torch keep HIP_VISIBLE_DEVICES.
    """
    environment.need("variables", "torch")
    if environment.torch is None or environment.torch.hip is None:
        return
    first = environment.variables.get(ROCR)
    name = HIP if HIP in environment.variables else CUDA
    second = environment.variables.get(name)
    if first is None or second is None:
        return
    left = len([entry for entry in first.split(",") if entry.strip()])
    chosen = [entry.strip() for entry in second.split(",") if entry.strip()]
    beyond = [entry for entry in chosen if entry.isdecimal() and int(entry[:9]) >= left]
    if not beyond and len(chosen) <= left:
        return
    yield Finding(
        message=f'{ROCR} is "{first}" and {name} is "{second}": the second selects GPUs that the first hides',
        severity=Severity.ERROR,
        at=(ROCR, name),
        measured={ROCR: first, name: second},
        threshold={"GPUs left by the first": left},
        cause="the GPUs that ROCR_VISIBLE_DEVICES leaves are renumbered from 0",
        fix=Fix("keep one of the two", (f"unset {ROCR}",)),
    )


def _amd(**variables: str) -> Environment:
    torch = Torch(version="2.13.0+rocm7.1", hip="7.1.25424", archs=())
    return laptop(torch=torch, packages={}, other_accelerator="an AMD GPU", variables=variables)


@rocm_masks_clash.bad
def third_of_one() -> Environment:
    return _amd(ROCR_VISIBLE_DEVICES="3", HIP_VISIBLE_DEVICES="3")


@rocm_masks_clash.good
def numbered_anew() -> Environment:
    return _amd(ROCR_VISIBLE_DEVICES="3", HIP_VISIBLE_DEVICES="0")


@rocm_masks_clash.good
def one_mask() -> Environment:
    return _amd(HIP_VISIBLE_DEVICES="3")
