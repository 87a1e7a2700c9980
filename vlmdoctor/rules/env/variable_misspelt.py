"""Environment variables with misspelt names."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.variable_names import closest_known_name
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop


@rule("variable-misspelt", "ENV401")
def variable_misspelt(environment: Environment) -> Iterator[Finding]:
    """Environment variable misspelt: almost a name that torch, CUDA, NCCL or a library reads.

    ## Why it matters
    A misspelt variable silently does nothing: `NCCL_P2P5ISABLE`, `NCCL_IB-DISABLE`
    (https://github.com/cocktailpeanut/fluxgym/issues/283), `CUDA_VISIBLE_DEVICE`.

    ## Confidence and false positives
    The names are compared with a list of known ones: a name is reported if it is not known and one or two
    letters off. Names that differ by a number only are not reported. The user's own variable with a name so
    close to a known one is reported too, so it is a warning.

    ## What to do
    Correct the name where it is set: shell profile, job script, container definition.
    """
    environment.need("variables")
    for name, value in environment.variables.items():
        meant = closest_known_name(name)
        if meant is None or meant in environment.variables:
            continue
        yield Finding(
            message=f"{name} is an unknown variable (typo?): did you mean {meant}?",
            severity=Severity.WARNING,
            at=(name,),
            measured={"set_to": value},
            cause="the name is misspelt, so the setting has no effect",
            fix=Fix("set the right variable", (f"unset {name}; export {meant}={value}",)),
        )


@variable_misspelt.bad
def one_letter_short() -> Environment:
    return laptop(variables={"CUDA_VISIBLE_DEVICE": "0"})


@variable_misspelt.bad
def a_slip_of_the_finger() -> Environment:
    return laptop(variables={"NCCL_P2P5ISABLE": "1"})


@variable_misspelt.good
def known_and_foreign_names() -> Environment:
    return laptop(variables={"CUDA_HOME": "/usr/local/cuda", "CUDA_PATH_V12_8": "x", "NCCL_MY_OWN": "1"})
