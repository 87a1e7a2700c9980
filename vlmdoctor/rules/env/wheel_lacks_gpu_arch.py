"""A wheel without kernels for this GPU."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Torch
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.versions import numbers
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import WHEEL, card, workstation

# Code for one of these runs on that device only (Jetson), and code for others does not run on it.
_ALONE = {53: {53}, 62: {62}, 72: {72}, 87: {87}, 101: {101, 110}}
_NOT_ON = {50: {53}, 52: {53}, 60: {62}, 61: {62}, 70: {72}, 80: {87}, 86: {87}, 100: {101}}


@rule("wheel-lacks-gpu-arch", "ENV203")
def wheel_lacks_gpu_arch(environment: Environment) -> Iterator[Finding]:
    """torch has no kernels for the GPU's compute capability.

    ## Why it matters
    `torch.cuda.is_available()` is True, and the first kernel raises "no kernel image is available for
    execution on the device". It happens with new GPUs on an old torch
    (https://github.com/pytorch/pytorch/issues/167244) and with old ones on a new torch: the builds for CUDA
    13 dropped V100 and older (https://github.com/unslothai/unsloth/issues/5876).

    ## Confidence and false positives
    The architectures are read from the wheel's library and the GPU's compute capability from the driver;
    compatibility is decided as in torch (code for 8.6 runs on 8.9, code for 12.0 on 12.1), and PTX is
    included. For a report that names the model only, the capability comes from a table. It is a warning where
    the list had to be inferred from the CUDA version.

    ## What to do
    Install a torch whose wheel has the architecture: the newest one for new GPUs, one for CUDA 12.6 for V100,
    P100 and older.
    """
    environment.need("torch", "archs")
    torch = environment.torch
    if torch is None or not torch.cuda or not torch.archs:
        return
    lacking = [gpu for gpu in environment.gpus if gpu.capability and not runs(torch.archs, gpu.capability)]
    if not lacking:
        return
    names = list(dict.fromkeys(gpu.name for gpu in lacking))
    capability = lacking[0].capability or ()
    old = capability < (7, 5)
    yield Finding(
        message=f"torch {torch.version} has no kernels for {names[0]} (sm_{''.join(map(str, capability))})",
        severity=Severity.ERROR,
        at=("torch", *names),
        measured={"capability": ".".join(map(str, capability)), "wheel": list(torch.archs)},
        cause="the wheel was compiled without this architecture",
        fix=Fix(
            "install a build that still has it" if old else "install a newer build, which has it",
            (
                "pip install --force-reinstall torch --index-url "
                f"https://download.pytorch.org/whl/{'cu126' if old else 'cu130'}",
            ),
        ),
    )


def runs(archs: tuple[str, ...], capability: tuple[int, ...]) -> bool:
    """Whether code for one of `archs` runs on a GPU of this capability."""
    if len(capability) != 2:
        return True
    device = capability[0] * 10 + capability[1]
    for arch in archs:
        kind, _, number = arch.partition("_")
        code = (numbers(number) or (10**6,))[0]
        if kind == "compute":
            # PTX is compiled when it is loaded, for any later device.
            if code <= device:
                return True
        elif number.endswith("a"):
            if code == device:
                return True
        elif code in _ALONE:
            if device in _ALONE[code]:
                return True
        elif code // 10 == device // 10 and code <= device and device not in _NOT_ON.get(code, ()):
            return True
    return False


@wheel_lacks_gpu_arch.bad
def blackwell_on_an_old_torch() -> Environment:
    torch = Torch(
        version="2.5.1+cu124",
        cuda="12.4",
        archs=("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
    )
    cards = (card(name="NVIDIA GeForce RTX 5090", capability=(12, 0)),)
    return workstation(torch=torch, packages={"torch": torch.version}, gpus=cards)


@wheel_lacks_gpu_arch.bad
def volta_on_cuda_13() -> Environment:
    return workstation(gpus=(card(name="Tesla V100-SXM2-32GB", capability=(7, 0)),))


@wheel_lacks_gpu_arch.good
def ada_on_code_for_ampere() -> Environment:
    return workstation(torch=WHEEL, gpus=(card(capability=(8, 9)), card(1, capability=(12, 1))))
