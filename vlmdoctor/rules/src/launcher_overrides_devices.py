"""A launcher whose GPU options conflict with CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.source import Launch, Source
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("launcher-overrides-devices", "SRC105")
def launcher_overrides_devices(source: Source) -> Iterator[Finding]:
    """deepspeed's GPU options conflict with CUDA_VISIBLE_DEVICES.

    ## Why it matters
    deepspeed ignores the variable when --include, --exclude or --num_gpus is given, or stops with "No slot
    '2' specified on host 'localhost'" (https://github.com/deepspeedai/DeepSpeed/issues/5818,
    https://github.com/deepspeedai/DeepSpeed/issues/662,
    https://github.com/huggingface/accelerate/issues/663).

    ## Confidence and false positives
    Both are in the same script, unconditionally. Which of the two wins depends on the version of deepspeed,
    so it is a warning.

    ## What to do
    Keep one: `deepspeed --include localhost:2,3 train.py`, without the variable.
    """
    for launch in source.launches:
        yield Finding(
            message=f'{launch.option} and CUDA_VISIBLE_DEVICES="{launch.value}" both choose the GPUs',
            severity=Severity.WARNING,
            at=("CUDA_VISIBLE_DEVICES", launch.option),
            file=launch.file,
            line=launch.line,
            measured={"command": launch.code},
            cause="the launcher sets the variable for its children itself",
            fix=Fix("keep one of the two", (f"deepspeed --include localhost:{launch.value} train.py",)),
        )


@launcher_overrides_devices.bad
def both() -> Source:
    code = "deepspeed --num_gpus 2 train.py"
    return Source(
        files=1, launches=(Launch(file="run.sh", line=4, code=code, option="--num_gpus", value="2,3"),)
    )


@launcher_overrides_devices.good
def nothing_launched() -> Source:
    return Source(files=1)
