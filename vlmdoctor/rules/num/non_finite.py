"""non-finite: NaN or infinity in the loss, the activations, the gradients or the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import NonFinite, Steps
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters, sample_steps

FP16_LARGEST = 65504.0
DIVERGED = 3.0  # times the lowest loss before it
SKIPPED = 20  # steps: a gradient scaler finds its scale in fewer
LINKS = (
    "https://github.com/haotian-liu/LLaVA/issues/463",
    "https://github.com/modelscope/ms-swift/issues/1099",
    "https://github.com/huggingface/transformers/issues/33312",
)


@rule(
    "non-finite",
    "NUM301",
    explains=(
        "loss-not-falling",
        "weights-not-moving",
        "no-gradient",
        "image-ignored",
        "initial-loss",
        "accuracy-below-gate",
    ),
)
def non_finite(steps: Steps, parameters: Parameters | None) -> Iterator[Finding]:
    """NaN or infinity during training: the step and the module where it began.

    ## Why it matters
    One NaN gradient turns every weight into NaN with the next step, and the run is lost from there on, often
    unnoticed: some trainers leave NaN out of the loss that they log ([transformers
    13619](https://github.com/huggingface/transformers/issues/13619)). Overflowing float16 activations
    ([transformers 33312](https://github.com/huggingface/transformers/issues/33312)), a mean over no labels
    ([Automodel 3796](https://github.com/NVIDIA-NeMo/Automodel/issues/3796)), Adam on float16 weights ([LLaVA
    463](https://github.com/haotian-liu/LLaVA/issues/463)), broken input and divergence are the usual reasons.

    ## Confidence and false positives
    That a value was non-finite is measured. A module is named only if its inputs and weights were finite and
    its output was not; otherwise the finding says why the module is not known. An infinite gradient alone is
    normal with float16 and a gradient scaler, which skips the step and lowers its scale, so it is reported
    only if the loss or the weights become non-finite too, or if it doesn't end.

    ## What to do
    Resume from a checkpoint before the named step. In float16: use bfloat16, or keep the named module in
    float32."""
    seen = steps.nonfinite or _from_losses(steps)
    if seen is None or (seen.where == "gradient" and not _harmful(seen, steps)):
        return
    dtype = _dtype(seen, parameters)
    recovered = seen.where == "loss" and _recovered(seen, steps)
    cause, fix = _why(seen, steps, dtype)
    where = f"in {seen.module}" if seen.module else f"in the {seen.where}"
    at = (seen.module,) if seen.module else seen.parameters or seen.inputs
    yield Finding(
        f"NaN or infinity {where} at step {seen.step}",
        Severity.WARNING if recovered else Severity.ERROR,
        at=tuple(at),
        file=seen.file,
        line=seen.line,
        measured={
            "where": seen.where,
            "module_class": seen.module_class,
            "largest_input": seen.largest,
            "batch_finite": seen.inputs_finite,
            "dtype": dtype,
        },
        threshold={"largest_input": FP16_LARGEST} if dtype == "float16" else {},
        cause=cause,
        fix=fix,
        links=LINKS,
        step=seen.step,
    )


def _from_losses(steps: Steps) -> NonFinite | None:
    first = next((step for step, loss in steps.losses if not math.isfinite(loss)), None)
    if first is None:
        return None
    return NonFinite(step=first, where="loss", why_unknown="only the loss was recorded")


def _harmful(seen: NonFinite, steps: Steps) -> bool:
    """Whether a non-finite gradient did harm; a gradient scaler skips such a step, and the run continues."""
    if any(not math.isfinite(loss) for step, loss in steps.losses if step >= seen.step):
        return True
    norms = [s.grad_norm for s in steps.sampled if s.step >= seen.step]
    return len(norms) >= SKIPPED and not any(math.isfinite(norm) for norm in norms if norm is not None)


def _recovered(seen: NonFinite, steps: Steps) -> bool:
    later = [loss for step, loss in steps.losses if step > seen.step]
    return len(later) >= 3 and all(math.isfinite(loss) for loss in later)


def _rise(seen: NonFinite, steps: Steps) -> tuple[float, float] | None:
    """The lowest loss before and the last one, where the last one is many times larger."""
    before = [loss for step, loss in steps.losses if step < seen.step and math.isfinite(loss)]
    if len(before) < 2 or before[-1] < DIVERGED * max(min(before), 1.0):
        return None
    return min(before), before[-1]


def _dtype(seen: NonFinite, parameters: Parameters | None) -> str | None:
    found = parameters.parameters if parameters else ()
    of_module = {p.dtype for p in found if seen.module and p.name.startswith(seen.module + ".")}
    dtypes = of_module or {p.dtype for p in found}
    return next(iter(dtypes)) if len(dtypes) == 1 else None


def _why(seen: NonFinite, steps: Steps, dtype: str | None) -> tuple[str, Fix]:
    labels = next((s.supervised_tokens for s in steps.steps if s.step == seen.step), None)
    if seen.inputs_finite is False:
        return "the batch itself holds NaN or infinity, before the model gets it", Fix(
            (
                "find the sample, and check the image preprocessing (a division by a zero deviation, a "
                "broken file)"
            ),
            ('assert batch["pixel_values"].isfinite().all()',),
        )
    if seen.where == "weight" and not any(s.step < seen.step for s in steps.steps):
        return "the weights were non-finite before the first step", Fix(
            "look at how they were loaded: tensors from to_empty or empty_like hold whatever the memory held",
            ("print([n for n, p in model.named_parameters() if not p.isfinite().all()])",),
        )
    if rise := _rise(seen, steps):
        return (
            f"the run had diverged: its loss rose from {rise[0]:.3g} to {rise[1]:.3g} before; too "
            f"high a learning rate is the usual reason, not a proven one"
        ), Fix(
            "resume from a checkpoint before that with a lower learning rate, more warm-up, and clipping",
            ("torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",),
        )
    if seen.where == "loss" and labels == 0:
        return "no label of this batch is supervised, so the mean over the labels divides 0 by 0", Fix(
            "drop batches without labels, or divide by at least 1",
            ("loss = losses.sum() / (labels != -100).sum().clamp(min=1)",),
        )
    if seen.where == "loss" and seen.module and labels is None:
        return (
            "all module outputs were finite, and the loss was not; the labels of this step were not "
            "counted, and with none supervised their mean is 0 divided by 0"
        ), Fix(
            "look at how the loss is computed; divide by at least 1 where it is a mean over labels",
            ("loss = losses.sum() / (labels != -100).sum().clamp(min=1)",),
        )
    if seen.module:
        kind = f" ({seen.module_class})" if seen.module_class else ""
        text = f"the inputs of {seen.module}{kind} were finite and its output was not"
        if seen.largest is not None:
            text += f"; the largest of them was {seen.largest:.3g}"
    else:
        why = seen.why_unknown or "it could not be established"
        text = f"seen first in the {seen.where}; the module that made it is not known: {why}"
    if dtype == "float16" or (seen.largest is not None and 1e4 < seen.largest <= FP16_LARGEST):
        text += f"; float16 ends at {FP16_LARGEST:.0f}, which points to an overflow" if seen.module else ""
        return text, Fix(
            (
                "use bfloat16, which has float32's range, or keep this module in float32; keep the weights "
                "in float32"
            ),
            ('with torch.autocast("cuda", dtype=torch.bfloat16): ...',),
        )
    return text, Fix(
        "resume from a checkpoint before this step; let PyTorch name the operation, then fix it (a "
        "division by zero, the "
        "logarithm or root of zero, a row with all positions masked) or lower the learning rate",
        ("torch.autograd.set_detect_anomaly(True)",),
    )


@non_finite.bad
def overflow_in_the_projector() -> tuple[Parameters, Steps]:
    parameters = sample_parameters(lambda p: {"dtype": "float16"})
    found = NonFinite(
        step=12,
        where="activation",
        module="model.vision_proj",
        module_class="Linear",
        inputs_finite=True,
        parameters=(),
        largest=6.1e4,
    )
    return parameters, sample_steps(13, loss=lambda step: 6.5 if step < 12 else math.nan, nonfinite=found)


@non_finite.bad
def no_labels() -> tuple[Parameters, Steps]:
    run = sample_steps(40, loss=lambda step: 6.5 - 0.01 * step if step < 30 else math.nan)
    return sample_parameters(), run


@non_finite.good
def skipped_by_the_scaler() -> tuple[Parameters, Steps]:
    """The loss scale starts too large for float16: the first step's gradients overflow and are skipped."""
    found = NonFinite(
        step=0, where="gradient", parameters=("model.lm.layers.0.mlp.up_proj.weight",), inputs_finite=True
    )
    change = {"nonfinite_gradient": 1, "first_nonfinite": 0}
    return sample_parameters(), sample_steps(nonfinite=found, track=lambda t: change)
