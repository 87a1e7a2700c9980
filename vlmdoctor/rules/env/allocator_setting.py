"""Settings of the CUDA allocator that fail or do nothing."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Torch
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.allocator import NAMES, complaints, ignored
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop, workstation


@rule("allocator-setting", "ENV402")
def allocator_setting(environment: Environment) -> Iterator[Finding]:
    """PYTORCH_CUDA_ALLOC_CONF has a setting that is refused or ignored.

    ## Why it matters
    An unknown key raises "Unrecognized CachingAllocator option" at the first CUDA call
    (https://github.com/jkulhanek/wild-gaussians/issues/16). Other settings are silently ignored: the new name
    PYTORCH_ALLOC_CONF before torch 2.9, and in 2.9 expandable_segments under it
    (https://github.com/pytorch/pytorch/issues/183387).

    ## Confidence and false positives
    The value is parsed as the allocator parses it. A misspelt key, a refused value or an `=` instead of `:`
    is an error on a machine with a GPU, a warning without. A key that is not known here is a warning.

    ## What to do
    Write each option as `key:value`, separated by commas: `expandable_segments:True`.
    """
    environment.need("variables")
    variables = environment.variables
    for name in NAMES:
        for complaint, certain in complaints(variables.get(name, "")):
            error = certain and bool(environment.gpus)
            yield Finding(
                message=f"{name}: {complaint}",
                severity=Severity.ERROR if error else Severity.WARNING,
                at=(name,),
                measured={"value": variables[name]},
                cause="the allocator reads the value at the first CUDA call and refuses it",
                fix=Fix("write key:value, separated by commas", (f"export {name}=expandable_segments:True",)),
            )
    what = ignored(variables, environment.torch.version if environment.torch else "")
    if what is not None:
        yield Finding(
            message=what,
            severity=Severity.WARNING,
            at=tuple(name for name in NAMES if name in variables),
            measured={name: variables[name] for name in NAMES if name in variables},
            cause="torch reads only one of the names; which one depends on its version",
            fix=Fix(
                "set the name that this torch reads",
                ("export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",),
            ),
        )


@allocator_setting.bad
def an_equals_sign() -> Environment:
    return workstation(variables={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments=True"})


@allocator_setting.bad
def a_new_name_for_an_old_torch() -> Environment:
    torch = Torch(version="2.8.0+cu128", cuda="12.8", archs=("sm_86",))
    return workstation(torch=torch, packages={}, variables={"PYTORCH_ALLOC_CONF": "expandable_segments:True"})


@allocator_setting.good
def as_documented() -> Environment:
    value = "expandable_segments:True,garbage_collection_threshold:0.8,roundup_power2_divisions:[256:1,>:2]"
    return workstation(variables={"PYTORCH_CUDA_ALLOC_CONF": value})


@allocator_setting.good
def not_set() -> Environment:
    return laptop()
