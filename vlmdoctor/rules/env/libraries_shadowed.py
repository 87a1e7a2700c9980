"""CUDA libraries that are found before those of torch's wheels."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Library
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.versions import numbers
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import workstation

# Their parts, and libraries built on them, need a release at least as new as that of the wheels.
_STRICT = ("libnvJitLink", "libcudnn")


@rule("libraries-shadowed", "ENV301", explains=("extension-built-for-other-torch",))
def libraries_shadowed(environment: Environment) -> Iterator[Finding]:
    """CUDA libraries of LD_LIBRARY_PATH or the system shadow those of torch's wheels.

    ## Why it matters
    The wheels bring the exact versions that torch was built with. A cuDNN, cuBLAS, NCCL or nvJitLink that is
    found first causes "undefined symbol: __nvJitLinkAddData_12_1", CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH,
    or a lower speed (https://github.com/infiniflow/ragflow/issues/4466,
    https://github.com/pytorch/pytorch/issues/134929, https://github.com/pytorch/pytorch/issues/131312,
    https://github.com/pytorch/pytorch/issues/188892).

    ## Confidence and false positives
    The folders of LD_LIBRARY_PATH are searched for libraries with the same name as the wheels'. It is an
    error where nvJitLink or cuDNN is older than the wheel's, a warning for other releases; nothing is
    reported where a version is not known. cuDNN engines in the system's folders are for information: they are
    loaded only when the wheel's are not found.

    ## What to do
    Unset LD_LIBRARY_PATH, or remove that folder from it.
    """
    environment.need("libraries")
    for by in ("LD_LIBRARY_PATH", "system"):
        found = [library for library in environment.libraries if library.by == by and _differs(library)]
        if not found:
            continue
        older = [library for library in found if _older(library)]
        worst = (older or found)[0]
        severity = Severity.ERROR if older else Severity.WARNING
        yield Finding(
            message=f"{worst.name} from {worst.path.rpartition('/')[0]} is loaded instead of torch's own"
            if by == "LD_LIBRARY_PATH"
            else f"another {worst.name} is in the system beside torch's own",
            severity=severity if by == "LD_LIBRARY_PATH" else Severity.INFO,
            at=(by if by == "LD_LIBRARY_PATH" else worst.path,),
            measured={library.name: library.version or "not known" for library in found},
            threshold={library.name: library.wheel or "not known" for library in found},
            cause=f"{by} comes before the folders of the wheels"
            if by == "LD_LIBRARY_PATH"
            else "cuDNN loads its engines by name, and the loader may find the system's",
            fix=Fix("let torch find its own libraries", ("unset LD_LIBRARY_PATH",))
            if by == "LD_LIBRARY_PATH"
            else Fix("only if cuDNN reports a mismatch of versions: remove the system's cuDNN"),
        )


def _differs(library: Library) -> bool:
    """Whether it is certainly another release; 9.10.2 and 9.10.2.21 are the same."""
    ours, wheel = numbers(library.version or ""), numbers(library.wheel or "")
    return len(ours) >= 2 and bool(wheel) and ours != wheel[: len(ours)]


def _older(library: Library) -> bool:
    """Whether it is an older release of a library that fails with one."""
    ours, wheel = numbers(library.version or ""), numbers(library.wheel or "")
    return library.name.startswith(_STRICT) and ours < wheel[: len(ours)]


@libraries_shadowed.bad
def an_old_toolkit() -> Environment:
    name = "libnvJitLink.so.12"
    found = Library(name=name, path=f"/usr/local/cuda-12.1/lib64/{name}", version="12.1.105", wheel="12.8.93")
    return workstation(libraries=(found,), variables={"LD_LIBRARY_PATH": "/usr/local/cuda-12.1/lib64"})


@libraries_shadowed.good
def the_same_version() -> Environment:
    name = "libnccl.so.2"
    return workstation(
        libraries=(Library(name=name, path=f"/usr/local/nccl/lib/{name}", version="2.28.9", wheel="2.28.9"),)
    )
