"""Two OpenMP runtimes in one process."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop

VARIABLE = "KMP_DUPLICATE_LIB_OK"
SET_BY_SKLEARN = "True"  # scikit-learn puts it into the environment of every program that imports it


@rule("openmp-twice", "ENV307")
def openmp_twice(environment: Environment) -> Iterator[Finding]:
    """A variable silences the warning about two OpenMP runtimes in one process.

    ## Why it matters
    Another package brings a second OpenMP runtime beside torch's: the process stops with "OMP: Error #15",
    or, with KMP_DUPLICATE_LIB_OK set to silence it, may hang or compute wrong numbers
    (https://github.com/dmlc/xgboost/issues/1715).

    ## How sure it is
    The variable is read, and passed over where it has the very value that scikit-learn sets on import. Which
    packages bring a second runtime is listed where they were found. Many programs run well with both: a
    warning, as Intel's own message has it.

    ## What to do
    Take the variable away and see whether the error comes; then remove the second runtime.
    """
    environment.need("variables")
    value = environment.variables.get(VARIABLE, "")
    if value == SET_BY_SKLEARN or value.lower() not in ("true", "1", "yes"):
        return
    yield Finding(
        message=f"{VARIABLE} is set: two OpenMP runtimes may be at work in one process",
        severity=Severity.WARNING,
        at=(VARIABLE, *environment.openmp),
        measured={"value": value, "runtimes": list(environment.openmp) or "not found by name"},
        cause="somebody silenced OMP: Error #15 with it",
        fix=Fix("take it away; if the error comes back, remove the second runtime", (f"unset {VARIABLE}",)),
    )


@openmp_twice.bad
def silenced() -> Environment:
    return laptop(variables={VARIABLE: "TRUE"}, openmp=("intel_openmp.libs/libiomp5.so",))


@openmp_twice.good
def set_by_importing_sklearn() -> Environment:
    return laptop(variables={VARIABLE: "True"}, openmp=("scikit_learn.libs/libgomp.so.1",))


@openmp_twice.good
def a_second_runtime_that_does_no_harm() -> Environment:
    return laptop(openmp=("sklearn/.dylibs/libomp.dylib",))
