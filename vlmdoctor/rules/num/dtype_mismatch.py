"""dtype-mismatch: a forward pass that raises since two dtypes or devices meet."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vlmdoctor.evidence.failure import Failure, TensorFact
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

_DTYPE = re.compile(
    r"same dtype|expected scalar type|Input type .* and (weight|bias) type|to have the same d?type"
    r"|expected m1 and m2|must have the same scalar type"
)
_DEVICE = re.compile(r"same device|on the same GPU|Input type \(torch\.(cuda\.)?\w+Tensor\) and weight type")
_FLOATS = ("float", "bfloat")


@rule("dtype-mismatch", "NUM103", formerly=("dtypes-meet",), explains=("forward-raises",))
def dtype_mismatch(forward: Forward) -> Iterator[Finding]:
    """Dtype mismatch, or device mismatch: an operation raises.

    ## Why it matters
    Nothing can be trained. It happens at the interfaces of a vision-language model: a tower in float16 and a
    projector in bfloat16 ([MoE-LLaVA 63](https://github.com/PKU-YuanGroup/MoE-LLaVA/issues/63), [LLaVA-RLHF
    12](https://github.com/llava-rlhf/LLaVA-RLHF/issues/12)), pixels that the processor left in float32, a
    batch that stayed on the CPU ([MiniCPM-V 246](https://github.com/OpenBMB/MiniCPM-V/issues/246)).

    ## Confidence and false positives
    The exception is real, and the dtypes and devices named are those of the tensors at that operation. The
    forward pass runs without autocast: a run that wraps its forward pass into autocast does not raise, and
    should be checked with a `loss_fn` that does the same.

    ## What to do
    Cast at the interface, to the dtype of the next module:

        features = self.projector(features.to(self.projector.weight.dtype))
    """
    failure = forward.failure
    if failure is None:
        return
    met = [fact for fact in (*failure.inputs, *failure.values) if fact.dtype.startswith(_FLOATS)]
    devices = sorted({fact.device for fact in (*failure.inputs, *failure.values)})
    dtypes = sorted({fact.dtype for fact in met})
    if _DTYPE.search(failure.message) and len(dtypes) > 1 and len(devices) == 1:
        what, kinds = "dtypes", dtypes
        fix = Fix(
            "cast the input to the dtype of the module's weights, or load both parts in one dtype",
            ("x = x.to(module.weight.dtype)",),
        )
    elif _DEVICE.search(failure.message) and len(devices) > 1:
        what, kinds = "devices", devices
        fix = Fix(
            "move the batch to the model's device",
            ("batch = {k: v.to(model.device) for k, v in batch.items()}",),
        )
    else:
        return
    yield Finding(
        message=f"{what[:-1]} mismatch: {' and '.join(kinds)} meet in "
        f"{failure.module or 'the forward pass'}, which raises",
        severity=Severity.ERROR,
        at=(f"{failure.module} ({failure.module_class})",) if failure.module else (),
        file=failure.file,
        line=failure.line,
        measured={fact.name: f"{list(fact.shape)} {fact.dtype} {fact.device}" for fact in _shown(failure)},
        cause=f"the {what} of its input and of its weights differ: {failure.message.partition(chr(10))[0]}",
        fix=fix,
    )


def _shown(failure: Failure) -> tuple[TensorFact, ...]:
    return (*failure.inputs[:4], *failure.values[:4])


@dtype_mismatch.bad
def tower_and_projector() -> Forward:
    facts = (
        TensorFact(name="x", shape=(2, 16, 32), dtype="float32", device="cpu"),
        TensorFact(name="weight", shape=(32, 32), dtype="bfloat16", device="cpu"),
    )
    message = "mat1 and mat2 must have the same dtype, but got Float and BFloat16"
    return Forward(
        failure=Failure(
            type="RuntimeError", message=message, module="vision_proj", module_class="Linear", inputs=facts
        )
    )


@dtype_mismatch.bad
def batch_left_on_the_cpu() -> Forward:
    facts = (
        TensorFact(name="input", shape=(2, 16), dtype="int64", device="cpu"),
        TensorFact(name="weight", shape=(97, 32), dtype="float32", device="cuda:0"),
    )
    message = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
    return Forward(
        failure=Failure(
            type="RuntimeError",
            message=message,
            module="embed_tokens",
            module_class="Embedding",
            inputs=facts,
        )
    )


@dtype_mismatch.good
def alike() -> Forward:
    return Forward(loss=6.5, finite=True)
