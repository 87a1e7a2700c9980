"""A file that sets a variable which fails, does nothing, or slows the run."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.source import Setting, Source
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.allocator import NAMES, complaints
from vlmdoctor.knowledge.variable_names import closest_known_name
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env.debugging_left_on import OFF, SLOWS


@rule("setting-without-effect-in-source", "SRC106")
def setting_without_effect_in_source(source: Source) -> Iterator[Finding]:
    """Misspelt variable, refused allocator option, or debug setting left on in a file.

    ## Why it matters
    The same faults as in the environment, found in the file that sets them: `NCCL_P2P5ISABLE` in a script
    (https://github.com/cocktailpeanut/fluxgym/issues/283), a refused allocator option
    (https://github.com/jkulhanek/wild-gaussians/issues/16), CUDA_LAUNCH_BLOCKING=1 left in a training script
    (https://github.com/ByteDance-Seed/VeOmni/issues/115,
    https://github.com/jishengpeng/WavTokenizer/issues/17).

    ## Confidence and false positives
    The rules variable-misspelt, allocator-setting and debugging-left-on judge the environment in the same
    way. These are warnings; debug settings are reported only in a file that trains, and for information in a
    notebook. Tests, conditional lines, and values that a later line sets again are not reported.

    ## What to do
    Correct the name or the value; remove debug settings from training scripts.
    """
    for setting in source.settings:
        if setting.in_tests or setting.undone or setting.condition is not None:
            continue
        name, value = setting.name, setting.value
        meant = closest_known_name(name)
        if meant is not None:
            yield _finding(
                setting,
                f"{name} is an unknown variable (typo?): did you mean {meant}?",
                f"{meant}={value or '…'}",
            )
        if value is None:
            continue
        if name in NAMES:
            for complaint, certain in complaints(value):
                if certain:
                    yield _finding(setting, f"{name}: {complaint}", f"{name}=expandable_segments:True")
        if name in SLOWS and value.lower() not in OFF and setting.trains:
            severity = Severity.INFO if setting.cell else Severity.WARNING
            yield _finding(setting, f"{name}={value} is left on: {SLOWS[name]}", None, severity)


def _finding(
    setting: Setting, message: str, right: str | None, severity: Severity = Severity.WARNING
) -> Finding:
    return Finding(
        message=message,
        severity=severity,
        at=(setting.name, f"cell {setting.cell}") if setting.cell else (setting.name,),
        file=setting.file,
        line=setting.line,
        measured={"value": setting.value if setting.value is not None else "not a constant"},
        cause=f"the file itself sets it: {setting.code}",
        fix=Fix("correct the setting", (right,)) if right else Fix("remove the line"),
    )


def _setting(name: str, value: str, condition: str | None = None) -> Source:
    made = Setting(
        file="train.sh",
        line=3,
        name=name,
        value=value,
        code=f"export {name}={value}",
        condition=condition,
        trains=True,
    )
    return Source(files=1, settings=(made,))


@setting_without_effect_in_source.bad
def misspelt() -> Source:
    return _setting("CUDA_VISIBLE_DEVICE", "0")


@setting_without_effect_in_source.bad
def refused() -> Source:
    return _setting("PYTORCH_CUDA_ALLOC_CONF", "expandable_segment:True")


@setting_without_effect_in_source.good
def under_a_flag() -> Source:
    return _setting("CUDA_LAUNCH_BLOCKING", "1", condition="args.debug")


@setting_without_effect_in_source.good
def right() -> Source:
    return _setting("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
