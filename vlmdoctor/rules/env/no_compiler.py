"""A package that compiles at run time, and nothing to compile with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import HOST, workstation


@rule("no-compiler", "ENV308")
def no_compiler(environment: Environment) -> Iterator[Finding]:
    """Compiler or CUDA toolkit missing, although deepspeed is installed.

    ## Why it matters
    deepspeed compiles CPUAdam and others when they are first used: "CUDA_HOME does not exist", "Python.h: No
    such file or directory" (https://github.com/deepspeedai/DeepSpeed/issues/2772,
    https://github.com/deepspeedai/DeepSpeed/issues/3223).

    ## Confidence and false positives
    Reported only where deepspeed is installed, there is a GPU, and nvcc or the C++ compiler can't be found. A
    run that uses none of these operators works all the same, so it is a warning. Nothing is reported without
    deepspeed: torch needs no nvcc.

    ## What to do
    Install the CUDA toolkit of torch's CUDA version, and a compiler.
    """
    environment.need("host", "packages")
    host = environment.host
    if host is None or "deepspeed" not in environment.packages or not environment.gpus:
        return
    missing = [
        name
        for name, there in (
            ("nvcc", host.nvcc),
            ("a C++ compiler", host.compiler),
            ("Python.h", host.python_headers),
        )
        if there is False
    ]
    if not missing:
        return
    yield Finding(
        message=f"deepspeed compiles its operators, and {' and '.join(missing)} can't be found",
        severity=Severity.WARNING,
        at=("deepspeed",),
        measured={"missing": missing},
        cause="neither PATH nor CUDA_HOME contains them",
        fix=Fix(
            f"install the toolkit for CUDA {environment.torch_cuda or ''}".rstrip(),
            ("export CUDA_HOME=/usr/local/cuda", "sudo apt install build-essential python3-dev"),
        ),
    )


@no_compiler.bad
def no_nvcc_for_deepspeed() -> Environment:
    return workstation(packages={"deepspeed": "0.18.4"})


@no_compiler.good
def no_nvcc_for_torch() -> Environment:
    return workstation()


@no_compiler.good
def all_there() -> Environment:
    host = dataclasses.replace(HOST, nvcc=True)
    return workstation(packages={"deepspeed": "0.18.4"}, host=host)
