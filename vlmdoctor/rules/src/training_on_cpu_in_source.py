"""A training script that stays on the CPU by itself."""

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
    GPUs, many times slower, without a word.

    ## Confidence and false positives
    A hint only: the script may be meant for the CPU. Just plain cases count: a name that is bound once, to
    the CPU, and used; a model moved before the training and not moved again; a switch such as `use_cpu=True`.
    Silent about anything under a condition, in tests, in functions that evaluate, save or convert, about
    tensors, and in files that do not train.

    ## What to do
    Choose the device by what there is: `"cuda" if torch.cuda.is_available() else "cpu"`.
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
            cause="the file itself chooses the CPU; if that is meant, ignore this",
            fix=Fix(
                "choose the device by what there is",
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
