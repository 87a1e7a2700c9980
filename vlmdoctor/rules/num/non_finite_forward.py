"""non-finite-forward: NaN or infinity in the very first forward pass."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.numerics import Culprit, Numerics
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

FP16_LARGEST = 65504.0


@rule(
    "non-finite-forward",
    "NUM101",
    explains=("non-finite", "initial-loss", "loss-not-falling", "weights-not-moving", "no-gradient"),
)
def non_finite_forward(numerics: Numerics) -> Iterator[Finding]:
    """NaN or infinity in the loss or the logits before the first step.

    ## Why it matters
    One backward pass from NaN makes every weight NaN. The usual reasons are activations beyond float16's
    largest number, 65504 ([transformers 33312](https://github.com/huggingface/transformers/issues/33312),
    [ms-swift 1099](https://github.com/modelscope/ms-swift/issues/1099)), weights that were never filled,
    pixels that were divided by zero, and fully masked rows of attention.

    ## Confidence and false positives
    It is measured. The named module had finite inputs and a non-finite output; if its own weights or the
    batch were non-finite already, that is reported instead. A batch without any supervised token gives NaN by
    design (a mean over nothing) and is not reported here.

    ## What to do
    Look at the named module. For an overflow, use bfloat16 or float32 there; for non-finite weights, check
    how they were loaded.
    """
    culprit = numerics.culprit
    if numerics.output_finite is not False:
        return
    if numerics.supervised_tokens == 0 and (culprit is None or culprit.only_loss):
        return
    broken = numerics.nonfinite_inputs or numerics.nonfinite_weights
    if culprit is None and not broken:
        return
    cause, fix = _why(numerics, culprit)
    at = numerics.nonfinite_inputs or numerics.nonfinite_weights or ((culprit.name,) if culprit else ())
    where = (
        "in the batch" if numerics.nonfinite_inputs else "in the weights" if broken else f"from {at[0]} on"
    )
    yield Finding(
        message=f"the forward pass gives NaN or infinity {where}",
        severity=Severity.ERROR,
        at=tuple(at),
        measured={
            "largest_finite_activation": numerics.largest,
            "largest_at": numerics.largest_at,
            "largest_input": culprit.largest_input if culprit else None,
            "dtype": culprit.dtype if culprit else None,
        },
        cause=cause,
        fix=fix,
    )


def _why(numerics: Numerics, culprit: Culprit | None) -> tuple[str, Fix]:
    if numerics.nonfinite_inputs:
        name = numerics.nonfinite_inputs[0]
        return f"{name} holds NaN or infinity before the model gets it", Fix(
            "find the sample, and look for a division by zero in its preprocessing",
            (f'assert batch["{name}"].isfinite().all()',),
        )
    if numerics.nonfinite_weights:
        return f"{numerics.nonfinite_weights[0]} holds NaN or infinity", Fix(
            "look at how it was loaded: tensors from to_empty or empty_like hold whatever the memory held",
            ("print([n for n, p in model.named_parameters() if not p.isfinite().all()])",),
        )
    assert culprit is not None
    what = "the loss that it computes" if culprit.only_loss else "its output"
    text = f"the inputs and weights of {culprit.name} ({culprit.module_class}) are finite, {what} isn't"
    if culprit.dtype == "float16":
        return f"{text}; float16 ends at {FP16_LARGEST:.0f}, which points to an overflow", Fix(
            "use bfloat16, which has float32's range, or keep this module in float32",
            ("model = model.to(torch.bfloat16)",),
        )
    return text, Fix(
        "look there for a division by zero, the logarithm or root of zero, or a fully masked row of "
        "attention",
        ("torch.autograd.set_detect_anomaly(True)",),
    )


@non_finite_forward.bad
def overflow_in_float16() -> Numerics:
    culprit = Culprit(
        name="model.vision_proj",
        module_class="Linear",
        dtype="float16",
        largest_input=6.1e4,
        weights_finite=True,
    )
    return Numerics(
        output_finite=False,
        supervised_tokens=12,
        culprit=culprit,
        largest=6.1e4,
        largest_at="model.vision_encoder",
        half=True,
    )


@non_finite_forward.bad
def broken_pixels() -> Numerics:
    return Numerics(output_finite=False, supervised_tokens=12, nonfinite_inputs=("pixel_values",))


@non_finite_forward.good
def finite() -> Numerics:
    return Numerics(output_finite=True, supervised_tokens=12, largest=31.0, largest_at="lm.layers.1")


@non_finite_forward.good
def a_batch_without_labels() -> Numerics:
    culprit = Culprit(
        name="LlamaForCausalLM",
        module_class="LlamaForCausalLM",
        dtype="float32",
        largest_input=12.0,
        weights_finite=True,
        only_loss=True,
    )
    return Numerics(
        output_finite=False, supervised_tokens=0, culprit=culprit, largest=31.0, largest_at="lm.layers.1"
    )
