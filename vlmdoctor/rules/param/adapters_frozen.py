"""adapters-frozen: adapters that were loaded to be used, and not to be trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.checkpoint_names import is_adapter
from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted, places
from vlmdoctor.rules.samples import sample_parameters


@rule(
    "adapters-frozen",
    "PARAM305",
    explains=("frozen-by-mistake", "backward-raises", "no-gradient", "loss-not-falling"),
)
def adapters_frozen(parameters: Parameters) -> Iterator[Finding]:
    """Finds models whose adapters are all frozen while nothing else learns either.

    ## Why it matters
    `PeftModel.from_pretrained` loads adapters for inference: all of them are frozen. A run that goes on from
    them raises `element 0 of tensors does not require grad`, or trains nothing at all
    ([llama-cookbook 16](https://github.com/meta-llama/llama-cookbook/issues/16), [Qwen-VL
    124](https://github.com/QwenLM/Qwen-VL/issues/124)).

    ## How sure it is
    Certain: no parameter of the model requires gradients, and it has adapters. Silent where anything learns.

    ## What to do
    Load them to be trained: `PeftModel.from_pretrained(base, folder, is_trainable=True)`.
    """
    adapters = [p for p in parameters.parameters if is_adapter(p.name)]
    if not adapters or any(p.requires_grad for p in parameters.parameters):
        return
    yield Finding(
        f"nothing can learn: the {counted(len(adapters), 'adapter tensor')} and the base are frozen",
        Severity.ERROR,
        at=places([p.name for p in adapters], [p.name for p in parameters.parameters]),
        measured={"trainable_parameters": 0, "adapter_tensors": len(adapters)},
        threshold={"trainable_parameters": 1},
        cause="requires_grad is False everywhere, as after PeftModel.from_pretrained without is_trainable",
        fix=Fix(
            "load the adapters to be trained",
            ("model = PeftModel.from_pretrained(base, folder, is_trainable=True)",),
        ),
        links=("https://github.com/meta-llama/llama-cookbook/issues/16",),
    )


def _adapted(trainable: bool) -> Parameters:
    sample = sample_parameters(lambda p: {"requires_grad": False, "in_optimizer": None, "lr": None})
    base = next(p for p in sample.parameters if p.role == "language" and p.layer)
    name = base.name.replace(".weight", ".lora_{}.default.weight")
    adapters = [
        Parameter(name.format(x), base.role, base.layer, base.depth, (8, 8), "float32", trainable)
        for x in "AB"
    ]
    return dataclasses.replace(sample, parameters=(*sample.parameters, *adapters), adapters=True)


@adapters_frozen.bad
def loaded_for_inference() -> Parameters:
    return _adapted(trainable=False)


@adapters_frozen.good
def loaded_for_training() -> Parameters:
    return _adapted(trainable=True)
