"""A variable that is set after it was read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmdoctor.evidence.source import Setting, Source
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.watched_variables import read_by_cuda
from vlmdoctor.rulebook import rule


@rule("setting-too-late", "SRC102")
def setting_too_late(source: Source) -> Iterator[Finding]:
    """Environment variable set too late: after CUDA was initialised or the library imported.

    ## Why it matters
    CUDA reads CUDA_VISIBLE_DEVICES once, when it is initialised: set later, it does nothing, the run uses
    other GPUs, and all jobs allocate on GPU 0 (https://github.com/pytorch/pytorch/issues/23544,
    https://github.com/pytorch/pytorch/issues/40618, https://github.com/pytorch/pytorch/issues/80876,
    https://github.com/pytorch/pytorch/issues/122815); importing flash-attn initialises it too
    (https://github.com/pytorch/pytorch/issues/159641). huggingface_hub reads HF_HOME and HF_HUB_OFFLINE when
    it is imported (https://github.com/huggingface/transformers/issues/42308), OpenMP reads OMP_NUM_THREADS
    when NumPy or torch is.

    ## Confidence and false positives
    The order is that of the file, read from its syntax tree. Only what certainly ran before is considered:
    unconditional calls and imports above the line, at the top or in the same function. Cells of a notebook
    are read from top to bottom. It is an error for the choice of GPUs in a file that trains, a warning for
    others. `import torch` alone does not initialise CUDA and is not reported for CUDA's variables. Nothing is
    reported in tests, and where the value was set earlier too.

    ## What to do
    Set it at the top, before the imports, or outside: `CUDA_VISIBLE_DEVICES=1 python train.py`.
    """
    for setting in source.settings:
        if setting.late is None or _deliberate(setting):
            continue
        # Unsetting a variable, or setting it once more, is no choice that comes too late.
        before = [
            s for s in source.settings if s.file == setting.file and s.name == setting.name and s.late is None
        ]
        if before or (setting.value is None and _takes_away(setting)):
            continue
        chooses = setting.name.endswith("VISIBLE_DEVICES")
        certain = chooses and setting.trains and setting.condition is None
        slow = setting.name.endswith("NUM_THREADS")
        yield Finding(
            message=f"{setting.name} is set after {setting.late}: it has no effect any more",
            severity=Severity.ERROR if certain else Severity.INFO if slow else Severity.WARNING,
            at=(setting.name, f"cell {setting.cell}") if setting.cell else (setting.name,),
            file=setting.file,
            line=setting.line,
            measured={"value": setting.value if setting.value is not None else "not a constant"},
            cause=f"{setting.late} comes before it, and reads the variable only once"
            if not read_by_cuda(setting.name)
            else f"{setting.late} comes before it, and CUDA reads the variable when it is initialised",
            fix=Fix(
                "set the variable before the imports, or outside the script",
                (f"export {setting.name}={setting.value or '…'}",),
            ),
        )


def _deliberate(setting: Setting) -> bool:
    """Whether it is in a test, or in a function that the file does not call."""
    return setting.in_tests or "being called" in (setting.condition or "")


def _takes_away(setting: Setting) -> bool:
    return any(word in setting.code for word in ("pop(", "del ", "unsetenv("))


def _set_late(name: str, late: str, **changes: Any) -> Source:
    code = f'os.environ["{name}"] = "1"'
    return Source(
        files=1,
        settings=(
            Setting(
                file="train.py",
                line=9,
                name=name,
                value="1",
                code=code,
                late=late,
                uses_torch=True,
                **changes,
            ),
        ),
    )


@setting_too_late.bad
def after_cuda_was_asked() -> Source:
    return _set_late("CUDA_VISIBLE_DEVICES", "torch.cuda.is_available()", trains=True)


@setting_too_late.bad
def offline_after_the_import() -> Source:
    return _set_late("HF_HUB_OFFLINE", "import transformers")


@setting_too_late.good
def in_a_test() -> Source:
    return _set_late("HF_HUB_OFFLINE", "import transformers", in_tests=True)


@setting_too_late.good
def in_time() -> Source:
    code = 'os.environ["CUDA_VISIBLE_DEVICES"] = "1"'
    return Source(
        files=1,
        settings=(
            Setting(
                file="train.py",
                line=2,
                name="CUDA_VISIBLE_DEVICES",
                value="1",
                code=code,
                trains=True,
                uses_torch=True,
            ),
        ),
    )
