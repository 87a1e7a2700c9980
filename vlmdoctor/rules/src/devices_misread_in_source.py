"""A file that selects GPUs with a value that is not understood."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.source import Setting, Source
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.visible_devices import VARIABLE, read
from vlmdoctor.rulebook import rule


@rule("devices-misread-in-source", "SRC103")
def devices_misread_in_source(source: Source) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES or NVIDIA_VISIBLE_DEVICES misread, as set in a file.

    ## Why it matters
    `0-3` is read as 0, and the job runs on one GPU; a compose file in list syntax keeps the quotes of `-
    CUDA_VISIBLE_DEVICES="0,1"`, and nothing is left (https://github.com/InternLM/MindSearch/issues/182,
    https://github.com/YanWenKun/ComfyUI-Docker/issues/60). `NVIDIA_VISIBLE_DEVICES=void` in an image keeps
    all GPUs out (https://github.com/mmartial/ComfyUI-Nvidia-Docker/issues/104).

    ## Confidence and false positives
    The value is parsed as torch parses it, for a machine with any number of GPUs. It is a warning, since the
    machine is not known. Tests, conditional lines, and values that a later line sets again are not reported.
    Values that hide all GPUs are `gpu-hidden-in-source`, where nothing better is known.

    ## What to do
    List the numbers of the GPUs, separated by commas and nothing else.
    """
    for setting in source.settings:
        if setting.value is None or setting.undone or setting.late or _deliberate(setting):
            continue
        if setting.name == "NVIDIA_VISIBLE_DEVICES" and setting.value in ("void", "none"):
            yield _finding(setting, "the container gets no GPU", "all")
        if setting.name != VARIABLE:
            continue
        reading = read(setting.value)
        if reading.crashes:
            yield _finding(setting, "torch raises ValueError on it", None)
        elif reading.meant and reading.visible and read(reading.meant).visible != reading.visible:
            yield _finding(
                setting, f"torch reads only GPU {', '.join(map(str, reading.visible))}", reading.meant
            )


def _deliberate(setting: Setting) -> bool:
    """Whether it is in a test, or in a function that the file does not call."""
    return setting.in_tests or "being called" in (setting.condition or "")


def _finding(setting: Setting, effect: str, meant: str | None) -> Finding:
    return Finding(
        message=f'{setting.name} is set to "{setting.value}": {effect}',
        severity=Severity.WARNING,
        at=(setting.name, f"cell {setting.cell}") if setting.cell else (setting.name,),
        file=setting.file,
        line=setting.line,
        measured={"value": setting.value},
        cause=f"the file itself sets it: {setting.code}",
        fix=Fix("did you mean", (f"{setting.name}={meant}",)) if meant else Fix("remove the line"),
    )


@devices_misread_in_source.bad
def a_range() -> Source:
    line = "export CUDA_VISIBLE_DEVICES=0-3"
    return Source(
        files=1,
        settings=(
            Setting(
                file="train.sh", line=3, name=VARIABLE, value="0-3", code=line, trains=True, uses_torch=True
            ),
        ),
    )


@devices_misread_in_source.bad
def void_in_an_image() -> Source:
    name = "NVIDIA_VISIBLE_DEVICES"
    return Source(
        files=1,
        settings=(
            Setting(
                file="Dockerfile", line=3, name=name, value="void", code=f"ENV {name}=void", uses_torch=True
            ),
        ),
    )


@devices_misread_in_source.good
def a_list() -> Source:
    line = "export CUDA_VISIBLE_DEVICES=0,1,2,3"
    return Source(
        files=1,
        settings=(
            Setting(
                file="train.sh",
                line=3,
                name=VARIABLE,
                value="0,1,2,3",
                code=line,
                trains=True,
                uses_torch=True,
            ),
        ),
    )
