"""rope-settings-wrong: rotary settings of the configuration that are invalid for this model."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.rope_settings import Rope, RopeSettings
from vlmdoctor.evidence.shapes import Shapes
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

SHORTEST_SHARE = 0.05  # of the context that the slowest pair has to span in one turn
LEAST_WIDTH = 16  # narrower heads rotate fast whatever the base is
STRETCHING = ("linear", "dynamic", "yarn", "llama3")


@rule("rope-settings-wrong", "ROPE190")
def rope_settings_wrong(rope: RopeSettings, shapes: Shapes | None) -> Iterator[Finding]:
    """RoPE settings wrong: positions come out wrong, and nothing raises.

    ## Why it matters
    A wrong base, a scaling factor below one or sections that don't add up raise nothing: positions are wrong,
    and the model learns worse than it should, or loses its pretraining. Settings that are dropped on the way
    do the same ([DeepSpeed 8345](https://github.com/deepspeedai/DeepSpeed/issues/8345)).

    ## Confidence and false positives
    The frequencies are computed by the model's own code from its configuration. It is an error if one is no
    number, or if all are equal. What depends on intent (a base with which the slowest pair rotates many times
    within the context, a factor below one) is a warning. A step that raises is not reported here: the
    exception is a finding of its own.

    ## What to do
    Take the values of the pretrained checkpoint's own config.json; scale with a factor of new length / old
    length.
    """
    if shapes is not None and shapes.failure is not None:
        return
    for one in rope.ropes:
        yield from _judged(one)


def _judged(one: Rope) -> Iterator[Finding]:
    settings = dict(one.settings)
    at = f"{one.path}.{one.layers}" if one.layers else one.path
    if not one.finite:
        yield _finding(
            one,
            at,
            f"{_what(one)}: frequencies are not positive numbers",
            Severity.ERROR,
            f"{at} gives them: " + ", ".join(f"{name} {value}" for name, value in one.settings),
        )
        return
    if one.theta is not None and one.theta <= 1:
        yield _finding(
            one,
            at,
            f"{at}.rope_theta is {one.theta:g}: the frequencies of a head do not decrease",
            Severity.ERROR,
            "pair i rotates by theta^(-2i/d) per position, which decreases with i only where theta is above "
            "1",
        )
        return
    if one.sections and sum(one.sections) != one.rotated // 2:
        yield _finding(
            one,
            at,
            f"{at}.mrope_section {list(one.sections)} adds up to {sum(one.sections)}, expected "
            f"{one.rotated // 2} pairs",
            Severity.WARNING,
            "time, height and width share the pairs of a head: pairs beyond the sum belong to no axis",
        )
    factor = settings.get("factor")
    if one.kind in STRETCHING and isinstance(factor, int | float) and not factor >= 1:
        yield _finding(
            one,
            at,
            f"{at}.factor is {factor:g}: expected 1 or more",
            Severity.WARNING,
            "a factor is new length / old length; below 1 it scales positions in the wrong direction",
        )
    low, high = settings.get("low_freq_factor"), settings.get("high_freq_factor")
    if (
        one.kind == "llama3"
        and isinstance(low, int | float)
        and isinstance(high, int | float)
        and low >= high
    ):
        yield _finding(
            one,
            at,
            f"{at}.low_freq_factor {low:g} is not below high_freq_factor {high:g}",
            Severity.WARNING,
            "between the two the scaling fades in, from slow pairs to fast ones",
        )
    fast, slow = settings.get("beta_fast", 32), settings.get("beta_slow", 1)
    both = isinstance(fast, int | float) and isinstance(slow, int | float)
    if one.kind == "yarn" and both and fast < slow:
        yield _finding(
            one,
            at,
            f"{at}.beta_fast {fast:g} is below beta_slow {slow:g}",
            Severity.WARNING,
            "pairs that rotate more often than beta_fast within the old length are not scaled",
        )
    old = settings.get("original_max_position_embeddings")
    if one.kind in STRETCHING and isinstance(old, int) and one.context and old > one.context:
        yield _finding(
            one,
            at,
            f"{at}.original_max_position_embeddings {old} is more than max_position_embeddings {one.context}",
            Severity.WARNING,
            "the scaling is for contexts longer than the original one",
        )
    usual = one.kind == "default" and one.part == "text" and one.rotated >= LEAST_WIDTH
    if (
        usual
        and one.theta is not None
        and one.context
        and one.slowest is not None
        and one.slowest < SHORTEST_SHARE * one.context
    ):
        yield _finding(
            one,
            at,
            f"{at}.rope_theta {one.theta:g} rotates the slowest pair {one.context / one.slowest:.0f} times "
            f"within {one.context} positions",
            Severity.WARNING,
            f"one rotation takes {one.slowest:.0f} tokens: two that far apart look like neighbours",
        )


def _what(one: Rope) -> str:
    return f"the rotary embedding of the {one.part}"


def _finding(one: Rope, at: str, message: str, severity: Severity, cause: str) -> Finding:
    return Finding(
        message,
        severity,
        at=(at, one.where),
        measured={"head_dim": one.head_dim, "rotated": one.rotated, "theta": one.theta},
        cause=cause,
        fix=Fix("take the values of the checkpoint's own config.json"),
    )


def rope(**changes: object) -> RopeSettings:
    """That of a Qwen2-VL, with changes."""
    usual = {
        "where": "model.language_model.rotary_emb",
        "path": "text_config.rope_parameters",
        "part": "text",
        "head_dim": 128,
        "rotated": 128,
        "theta": 1e6,
        "slowest": 5e6,
        "sections": (16, 24, 24),
        "context": 32768,
    }
    return RopeSettings(ropes=(Rope(**(usual | changes)),))  # type: ignore[arg-type]


@rope_settings_wrong.bad
def base_of_one() -> RopeSettings:
    return rope(theta=1.0, slowest=6.3)


@rope_settings_wrong.bad
def no_numbers() -> RopeSettings:
    return rope(theta=-1e6, slowest=None, finite=False)


@rope_settings_wrong.bad
def sections_for_a_narrower_head() -> RopeSettings:
    return rope(sections=(8, 12, 12))


@rope_settings_wrong.bad
def base_too_small_for_the_context() -> RopeSettings:
    return rope(theta=10.0, slowest=60.0)


@rope_settings_wrong.good
def of_a_qwen2_vl() -> RopeSettings:
    return rope()


@rope_settings_wrong.good
def yarn_over_a_longer_context() -> RopeSettings:
    settings = (("factor", 4.0), ("original_max_position_embeddings", 32768))
    return rope(kind="yarn", settings=settings, context=131072)
