"""A variable that switches off, or forces, what training needs."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop

_ON = ("1", "true", "yes", "on")
_REMARKS = {
    "HF_HUB_OFFLINE": "models and data sets that are not in the cache are not found",
    "TRANSFORMERS_OFFLINE": "models that are not in the cache are not found",
    "HF_DATASETS_OFFLINE": "data sets that are not in the cache are not found",
    "TRANSFORMERS_DISABLE_TORCH_CHECK": "transformers no longer checks the inputs of models",
    "PYTORCH_ENABLE_MPS_FALLBACK": "operators that Apple's GPU lacks run on the CPU, slowly",
}


@rule("library-switched-off", "ENV405")
def library_switched_off(environment: Environment) -> Iterator[Finding]:
    """Environment variable switches off torch in transformers, the hub's network, or checks.

    ## Why it matters
    USE_TORCH=0 makes transformers behave as if torch were not installed. With HF_HUB_OFFLINE left on,
    everything outside the cache is "not found" (https://github.com/huggingface/transformers/issues/42308).
    TRANSFORMERS_DISABLE_TORCH_CHECK silences the checks of inputs that would have named a mistake.

    ## Confidence and false positives
    USE_TORCH is an error: no model of transformers can be used. The others are for information: they are
    often intended.

    ## What to do
    Unset the variable where it is not intended.
    """
    environment.need("variables")
    value = environment.variables.get("USE_TORCH", "")
    if value.lower() in ("0", "false", "no", "off"):
        yield Finding(
            message=f"USE_TORCH={value}: transformers behaves as if torch were not installed",
            severity=Severity.ERROR if "transformers" in environment.packages else Severity.WARNING,
            at=("USE_TORCH",),
            measured={"value": value},
            cause="the variable switches torch off in transformers",
            fix=Fix("unset the variable", ("unset USE_TORCH",)),
        )
    for name, effect in _REMARKS.items():
        if environment.variables.get(name, "").lower() not in _ON:
            continue
        if name == "PYTORCH_ENABLE_MPS_FALLBACK" and not environment.platform.startswith("Darwin"):
            continue
        yield Finding(
            message=f"{name} is on: {effect}",
            severity=Severity.INFO,
            at=(name,),
            measured={"value": environment.variables[name]},
            cause="it is set in the environment that runs are started from",
            fix=Fix("unset the variable if it is not intended", (f"unset {name}",)),
        )


@library_switched_off.bad
def without_torch() -> Environment:
    return laptop(packages={"torch": "2.13.0+cpu", "transformers": "5.23.0"}, variables={"USE_TORCH": "0"})


@library_switched_off.bad
def left_offline() -> Environment:
    return laptop(variables={"HF_HUB_OFFLINE": "1"})


@library_switched_off.good
def switched_on() -> Environment:
    return laptop(variables={"USE_TORCH": "1", "HF_HUB_OFFLINE": "0"})
