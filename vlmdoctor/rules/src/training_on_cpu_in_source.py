"""A training script that selects the CPU itself."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.source import OnCpu, Source
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("training-on-cpu-in-source", "SRC104")
def training_on_cpu_in_source(source: Source) -> Iterator[Finding]:
    """Training script uses the CPU whatever the machine has.

    ## Why it matters
    A line from debugging, `device = "cpu"` or `model.cpu()`, keeps the training on the CPU on a machine with
    GPUs, many times slower, and nothing warns.

    ## Confidence and false positives
    It is a hint only: the script may be intended for the CPU. Only plain cases are reported: a name that is
    bound once, to the CPU, and used; a model moved before the training and not moved again; a switch such as
    `use_cpu=True`. Conditional lines, tests, functions that evaluate, save or convert, tensors, and files
    that do not train are not reported.

    ## What to do
    Select the device that is available: `"cuda" if torch.cuda.is_available() else "cpu"`.
    """
    for place in source.on_cpu:
        if place.in_tests:
            continue
        yield Finding(
            message=f"the training stays on the CPU: {place.what}",
            severity=Severity.INFO,
            at=(f"cell {place.cell}",) if place.cell else (),
            file=place.file,
            line=place.line,
            measured={"code": place.code},
            cause="the file itself selects the CPU; if that is intended, ignore this",
            fix=Fix(
                "select the device that is available",
                ('device = "cuda" if torch.cuda.is_available() else "cpu"',),
            ),
        )


@training_on_cpu_in_source.bad
def left_from_debugging() -> Source:
    return Source(
        files=1,
        on_cpu=(
            OnCpu(
                file="train.py", line=12, what="device is the CPU, whatever there is", code='device = "cpu"'
            ),
        ),
    )


@training_on_cpu_in_source.good
def a_test() -> Source:
    place = OnCpu(
        file="tests/test_train.py",
        line=12,
        what="device is the CPU, whatever there is",
        code='device = "cpu"',
        in_tests=True,
    )
    return Source(files=1, on_cpu=(place,))
