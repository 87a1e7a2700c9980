"""A file of the project that hides the GPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vlmdoctor.evidence.source import Setting, Source
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.visible_devices import VARIABLE, sees_nothing
from vlmdoctor.rulebook import rule

# A condition that names one of these chooses the CPU on purpose.
_DELIBERATE = re.compile(r"cpu|gpu|cuda|device|platform|mps|debug|test|being called", re.IGNORECASE)


@rule("gpu-hidden-in-source", "SRC101")
def gpu_hidden_in_source(source: Source) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES hides all GPUs in a script, notebook or Dockerfile.

    ## Why it matters
    `os.environ["CUDA_VISIBLE_DEVICES"] = ""` in a script wins over everything set outside of it. Where it
    takes effect, `torch.cuda.is_available()` is False and training continues silently on the CPU, many times
    slower. Published scripts have such a line, or a number that the next machine does not have:
    thuml/Autoformer#25, Grace9994/CoMoSVC#6, syorami/DDC-transfer-learning#3.

    ## Confidence and false positives
    The value is parsed as torch parses it: `""`, `-1`, `all`, `none` and duplicates leave no GPU. An error
    only in a file that trains (optimizer steps, a trainer, a launcher) and where the line always runs. A
    warning where the file uses torch but does not train by itself. Not reported are values that are no
    constants, lines under a condition that selects the CPU, functions that the file does not call, and values
    that a later line sets again. In tests, and in files without torch, it is for information. A line that
    comes after CUDA was initialised, and hides nothing any more, is `setting-too-late`.

    ## What to do
    Remove the line. To choose GPUs, set the variable outside of the script, before it starts:

        CUDA_VISIBLE_DEVICES=0 python train.py
    """
    for setting in source.settings:
        if (
            setting.name != VARIABLE
            or setting.value is None
            or not sees_nothing(setting.value)
            or setting.undone
            or setting.late
        ):
            continue
        if setting.condition is not None and _DELIBERATE.search(setting.condition):
            continue
        severity = _severity(setting)
        yield Finding(
            message=f'{VARIABLE} is set to "{setting.value}": torch sees no GPU and trains on the CPU',
            severity=severity,
            at=(VARIABLE, f"cell {setting.cell}") if setting.cell else (VARIABLE,),
            file=setting.file,
            line=setting.line,
            measured={"value": setting.value},
            cause=_cause(setting),
            fix=Fix(
                "remove the line; to choose GPUs, set the variable outside the script", _commands(setting)
            ),
        )


def _severity(setting: Setting) -> Severity:
    if setting.in_tests or not setting.uses_torch:
        return Severity.INFO
    if setting.trains and setting.condition is None:
        return Severity.ERROR
    return Severity.WARNING


def _cause(setting: Setting) -> str:
    cause = f"the file itself sets it: {setting.code}"
    if setting.condition is not None:
        cause += f" (under the condition: {setting.condition})"
    if setting.value == "all":
        cause += "; 'all' has a meaning for NVIDIA_VISIBLE_DEVICES only"
    return cause


def _commands(setting: Setting) -> tuple[str, ...]:
    if setting.file.endswith(".py"):
        return (f"{VARIABLE}=0 python {setting.file}",)
    return ()


LEFT_OVER = 'os.environ["CUDA_VISIBLE_DEVICES"] = ""'


@gpu_hidden_in_source.bad
def left_over_from_debugging() -> Source:
    return Source(
        files=1,
        settings=(
            Setting(
                file="train.py", line=8, name=VARIABLE, value="", code=LEFT_OVER, trains=True, uses_torch=True
            ),
        ),
    )


@gpu_hidden_in_source.bad
def in_a_notebook() -> Source:
    line = "%env CUDA_VISIBLE_DEVICES=-1"
    return Source(
        files=1,
        settings=(
            Setting(
                file="train.ipynb",
                line=1,
                name=VARIABLE,
                value="-1",
                code=line,
                cell=2,
                trains=True,
                uses_torch=True,
            ),
        ),
    )


@gpu_hidden_in_source.good
def behind_a_flag() -> Source:
    setting = Setting(
        file="train.py",
        line=8,
        name=VARIABLE,
        value="",
        code=LEFT_OVER,
        condition="args.cpu",
        trains=True,
        uses_torch=True,
    )
    return Source(files=1, settings=(setting,))


@gpu_hidden_in_source.good
def a_real_choice() -> Source:
    line = 'os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"'
    return Source(
        files=1,
        settings=(
            Setting(
                file="train.py", line=8, name=VARIABLE, value="0,1", code=line, trains=True, uses_torch=True
            ),
        ),
    )
