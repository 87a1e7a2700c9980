"""half-precision-weights: trainable weights in float16."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.training_args import TrainingArgs
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters
from vlmdoctor.rules.places import counted, places


@rule("half-precision-weights", "OPT305")
def half_precision_weights(parameters: Parameters, arguments: TrainingArgs) -> Iterator[Finding]:
    """Trainable weights in float16.

    ## Why it matters
    A gradient scaler refuses them at the first step, `Attempting to unscale FP16 gradients` ([transformers
    30559](https://github.com/huggingface/transformers/issues/30559)). Without one, Adam's `eps` of 1e-8 and
    squares of small gradients are 0 in float16: the first update divides by zero and the projector is
    infinite ([LLaVA 463](https://github.com/haotian-liu/LLaVA/issues/463)).

    ## Confidence and false positives
    Certain with `fp16=True` in the training arguments, unless DeepSpeed does the scaling. Nothing is reported
    without `fp16=True`, since an optimizer may keep copies in float32; a fault then shows within a few steps.

    ## What to do
    Load in float32 and compute in half precision through autocast; or use bfloat16 where the GPU has it.
    """
    chosen = [p for p in parameters.parameters if p.requires_grad and p.dtype == "float16"]
    if not chosen or not arguments.fp16:
        return
    yield Finding(
        f"{counted(len(chosen), 'trainable parameter')} {'are' if len(chosen) > 1 else 'is'} in float16, "
        f"which the gradient scaler of fp16=True refuses",
        Severity.ERROR,
        at=places([p.name for p in chosen], [p.name for p in parameters.parameters if p.requires_grad]),
        measured={"float16": len(chosen), "fp16": True},
        threshold={"float16": 0},
        cause="the scaler unscales no gradients in float16, and gradients have the data type of the weights",
        fix=Fix(
            "keep trainable weights in float32",
            ("for p in model.parameters():", "    if p.requires_grad: p.data = p.data.float()"),
        ),
    )


@half_precision_weights.bad
def loaded_in_half() -> tuple[Parameters, TrainingArgs]:
    return sample_parameters(lambda p: {"dtype": "float16"}), TrainingArgs(fp16=True)


@half_precision_weights.good
def frozen_half() -> tuple[Parameters, TrainingArgs]:
    """The usual LoRA: a frozen base in float16."""
    half = {"dtype": "float16", "requires_grad": False, "in_optimizer": 0}
    return sample_parameters(lambda p: half if p.role == "language" else {}), TrainingArgs(fp16=True)
