"""beyond-float16: activations too large for float16, in a run that will use float16."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.numerics import Numerics
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

LARGEST = 65504.0


@rule("beyond-float16", "NUM102")
def beyond_float16(numerics: Numerics) -> Iterator[Finding]:
    """Activation too large for float16, in a run that uses float16.

    ## Why it matters
    Models that were trained in bfloat16 keep some activations beyond 65504. In float16 these become infinite,
    the loss NaN, and a gradient scaler skips every step, which some logs show as a loss of 0 ([ms-swift
    1099](https://github.com/modelscope/ms-swift/issues/1099),
    [5580](https://github.com/modelscope/ms-swift/issues/5580), [transformers
    33312](https://github.com/huggingface/transformers/issues/33312)).

    ## Confidence and false positives
    The largest activation of one forward pass is measured in the dtype that the model has now. That the run
    is in float16 is read from the training arguments. The named module may keep float32 under autocast (as
    norms and losses do), so it is a warning.

    ## What to do
    Use bfloat16: `TrainingArguments(bf16=True, fp16=False)`. Where the GPU has none, keep the named module in
    float32.
    """
    if not numerics.half or numerics.largest <= LARGEST or numerics.output_finite is False:
        return
    yield Finding(
        message=f"an activation of {numerics.largest:.3g} exceeds float16's largest number, {LARGEST:.0f}",
        severity=Severity.WARNING,
        at=(numerics.largest_at,) if numerics.largest_at else (),
        measured={"largest_activation": numerics.largest},
        threshold={"largest_activation": LARGEST},
        cause="the run will be in float16, which has a smaller range than bfloat16 and float32",
        fix=Fix("train in bfloat16", ("TrainingArguments(bf16=True, fp16=False)",)),
    )


@beyond_float16.bad
def trained_in_bfloat16() -> Numerics:
    return Numerics(
        output_finite=True,
        supervised_tokens=12,
        largest=2.3e5,
        largest_at="model.layers.2.mlp.down_proj",
        half=True,
    )


@beyond_float16.good
def in_bfloat16() -> Numerics:
    return Numerics(
        output_finite=True, supervised_tokens=12, largest=2.3e5, largest_at="model.layers.2.mlp.down_proj"
    )
