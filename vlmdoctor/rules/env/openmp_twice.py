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
    """Two OpenMP runtimes allowed: KMP_DUPLICATE_LIB_OK is set.

    ## Why it matters
    Another package brings a second OpenMP runtime beside torch's: the process stops with "OMP: Error #15",
    or, with KMP_DUPLICATE_LIB_OK set to silence the error, may hang or compute wrong numbers
    (https://github.com/dmlc/xgboost/issues/1715).

    ## Confidence and false positives
    The variable is read, and not reported where it has the value that scikit-learn sets on import. Packages
    with a second runtime are listed where they were found. Many programs run well with both, so it is a
    warning, as in Intel's own message.

    ## What to do
    Unset the variable and check whether the error comes; then remove the second runtime.
    """
    environment.need("variables")
    value = environment.variables.get(VARIABLE, "")
    if value == SET_BY_SKLEARN or value.lower() not in ("true", "1", "yes"):
        return
    yield Finding(
        message=f"{VARIABLE} is set: one process may run two OpenMP runtimes",
        severity=Severity.WARNING,
        at=(VARIABLE, *environment.openmp),
        measured={"value": value, "runtimes": list(environment.openmp) or "not found by name"},
        cause="the variable silences OMP: Error #15",
        fix=Fix(
            "unset the variable; if the error comes back, remove the second runtime", (f"unset {VARIABLE}",)
        ),
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
