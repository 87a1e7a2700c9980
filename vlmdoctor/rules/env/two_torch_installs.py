"""Traces of two installs of torch over each other."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Torch
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.versions import numbers
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import workstation


@rule("two-torch-installs", "ENV304")
def two_torch_installs(environment: Environment) -> Iterator[Finding]:
    """Two versions of torch, or libraries for two CUDA versions, installed over each other.

    ## Why it matters
    An install that pulled in another torch leaves files of both: libraries for CUDA 12 beside those for 13,
    or two sets of metadata for one torch. The import is a mixture
    (https://github.com/NVIDIA/TensorRT-LLM/issues/9318, https://github.com/pytorch/pytorch/issues/28321).

    ## Confidence and false positives
    Two records of torch in one folder are an error: files of both are there. nvidia packages for another CUDA
    than torch's, with their own cuDNN or cuBLAS, are for information: they take space and are loaded only by
    accident.

    ## What to do
    Uninstall both versions, then install the intended one.
    """
    environment.need("torch", "packages")
    torch = environment.torch
    if torch is None:
        return
    if len(torch.recorded) > 1:
        yield Finding(
            message=f"{len(torch.recorded)} versions of torch are recorded in one folder",
            severity=Severity.ERROR,
            at=("torch",),
            measured={"recorded": list(torch.recorded), "imported": torch.version},
            cause="one was installed over another that was not removed",
            fix=Fix(
                "uninstall both and install one",
                ("pip uninstall -y torch; pip uninstall -y torch", "pip install torch"),
            ),
        )
    families = {
        name.rpartition("-cu")[2]
        for name in environment.packages
        if name.startswith(("nvidia-cudnn-cu", "nvidia-cublas-cu")) and name.rpartition("-cu")[2].isdecimal()
    }
    major = (numbers(torch.cuda or "") or (None,))[0]
    others = sorted(families - {str(major)})
    if major is not None and others and str(major) in families:
        yield Finding(
            message=f"libraries for CUDA {', '.join(others)} are installed beside those for CUDA {major}",
            severity=Severity.INFO,
            at=tuple(f"nvidia-*-cu{other}" for other in others),
            measured={"torch_cuda": torch.cuda},
            cause="another package, or an earlier torch, brought them",
            fix=Fix("remove them if nothing else needs them", (f"pip list | grep -e '-cu{others[0]}'",)),
        )


@two_torch_installs.bad
def one_over_another() -> Environment:
    torch = Torch(
        version="2.13.0+cu130",
        cuda="13.0",
        archs=("sm_86",),
        folder="/venv/torch",
        recorded=("2.12.1", "2.13.0+cu130"),
    )
    return workstation(torch=torch)


@two_torch_installs.bad
def two_generations() -> Environment:
    return workstation(packages={"nvidia-cudnn-cu12": "9.10.2.21", "nvidia-cudnn-cu13": "9.19.0.56"})


@two_torch_installs.good
def one_generation() -> Environment:
    return workstation(packages={"nvidia-cudnn-cu13": "9.19.0.56", "nvidia-cublas": "13.1.0.3"})
