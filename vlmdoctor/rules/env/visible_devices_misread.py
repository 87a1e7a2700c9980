"""A value of CUDA_VISIBLE_DEVICES that leaves fewer GPUs than it names."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.visible_devices import VARIABLE, read
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import laptop, workstation
from vlmdoctor.rules.env.gpu_hidden_by_environment import entries


@rule("visible-devices-misread", "ENV102", explains=("gpu-order-differs",))
def visible_devices_misread(environment: Environment) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES names more GPUs than torch reads from it.

    ## Why it matters
    Ranges and separators other than a comma are not understood: of `0-3`, `0:4` or `0 1` only the leading 0
    is read, and the job runs on one GPU. Such values are even recommended
    (https://github.com/InternLM/MindSearch/issues/182). The first entry that is no GPU of this machine ends
    the list, and what follows is never read. Entries that are UUIDs are not stripped of blanks.

    ## Confidence and false positives
    The value is parsed as torch parses it, on the GPUs of this machine; the CUDA driver, which torch asks
    later, parses it in the same way as far as is known. A comma at the end, which does no harm, is not
    reported. It is an error, since the run does not get the requested GPUs. `check-env --live` asks CUDA
    itself.

    ## What to do
    List the numbers of the GPUs, separated by commas and nothing else: `0,1,2,3`.
    """
    environment.need("variables")
    value = environment.variables.get(VARIABLE)
    if value is None or not environment.gpus:
        return
    reading = read(value, len(environment.gpus), [gpu.uuid or "" for gpu in environment.gpus])
    if reading.crashes or not reading.visible or reading.as_written:
        return
    seen = len(reading.visible)
    # -1 ends a list on purpose; scripts pad with it.
    if all(entry.harmless or entry.text.strip() in ("-1", "") for entry in reading.entries):
        return
    # `1gpu` is a number with a remark after it: all GPUs that it names are visible.
    if reading.meant is None and len(reading.entries) == seen:
        return
    same = reading.meant is not None and read(reading.meant, len(environment.gpus)).visible == reading.visible
    yield Finding(
        message=f'{VARIABLE} is "{value}": torch uses {seen} of {len(environment.gpus)} GPUs',
        severity=Severity.WARNING if same else Severity.ERROR,
        at=(VARIABLE,),
        measured={"value": value, "entries": entries(reading), "visible": list(reading.visible)},
        cause="only whole numbers between commas are read, and the first that is no GPU ends the list",
        fix=Fix("did you mean", (f"export {VARIABLE}={reading.meant}",))
        if reading.meant
        else Fix(
            "list the GPUs of this machine",
            (f"export {VARIABLE}={','.join(map(str, range(len(environment.gpus))))}",),
        ),
    )


@visible_devices_misread.bad
def a_range() -> Environment:
    return workstation(variables={VARIABLE: "0-1"})


@visible_devices_misread.bad
def one_gpu_too_many() -> Environment:
    return workstation(variables={VARIABLE: "0,2,1"})


@visible_devices_misread.good
def a_comma_at_the_end() -> Environment:
    return workstation(variables={VARIABLE: "0,1,"})


@visible_devices_misread.good
def nothing_to_see() -> Environment:
    return laptop(variables={VARIABLE: "0-3"})
