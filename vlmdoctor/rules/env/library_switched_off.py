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
    "TRANSFORMERS_DISABLE_TORCH_CHECK": "transformers no longer checks what models are given",
    "PYTORCH_ENABLE_MPS_FALLBACK": "operators that Apple's GPU lacks run on the processor, slowly",
}


@rule("library-switched-off", "ENV405")
def library_switched_off(environment: Environment) -> Iterator[Finding]:
    """A variable keeps transformers from torch, the hub from the network, or checks from running.

    ## Why it matters
    USE_TORCH=0 makes transformers behave as if torch were not installed. With HF_HUB_OFFLINE left on,
    whatever is not in the cache is "not found" (https://github.com/huggingface/transformers/issues/42308).
    TRANSFORMERS_DISABLE_TORCH_CHECK silences the checks of inputs that would have named a mistake.

    ## How sure it is
    USE_TORCH is an error: nothing of transformers that needs torch can be used. The others are remarks: they
    are often meant.

    ## What to do
    Unset the variable where it is not meant.
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
            fix=Fix("take it away", ("unset USE_TORCH",)),
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
            fix=Fix("take it away, if it is not meant", (f"unset {name}",)),
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
