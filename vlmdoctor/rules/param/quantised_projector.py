"""quantised-projector: the projector is quantised."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters
from vlmdoctor.rules.places import counted, places

QUANTISED = ("int8", "uint8", "int4", "uint4")


@rule("quantised-projector", "PARAM304")
def quantised_projector(parameters: Parameters) -> Iterator[Finding]:
    """Projector quantised along with the language model.

    ## Why it matters
    `load_in_4bit` quantises every linear layer that is not excluded. Quantising the projector saves almost no
    memory, a quantised projector can't be trained, and its output feeds every layer: answers become noise
    ([vstar 3](https://github.com/penghao-wu/vstar/issues/3), [ComfyUI-JoyCaption
    53](https://github.com/1038lab/ComfyUI-JoyCaption/issues/53)). Lists that excluded it stopped matching
    when transformers 5 anchored the names ([unsloth 4209](https://github.com/unslothai/unsloth/issues/4209)).

    ## Confidence and false positives
    The data types are read. How much it harms is not measured: a warning.

    ## What to do
    Name the projector (and the vision tower) in `llm_int8_skip_modules`, from the start of the full name.
    """
    chosen = [p for p in parameters.role("projector") if p.dtype in QUANTISED]
    if not chosen:
        return
    module = chosen[0].name.rpartition(".")[0]
    yield Finding(
        f"the projector is quantised: {counted(len(chosen), 'tensor')} in {chosen[0].dtype}",
        Severity.WARNING,
        at=places([p.name for p in chosen], [p.name for p in parameters.parameters]),
        measured={"tensors": len(chosen), "numbers": sum(p.numel for p in chosen)},
        threshold={"tensors": 0},
        cause="it was not excluded when the model was quantised, and integers can't learn",
        fix=Fix(
            "keep it in floating point",
            (f'BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["{module}", "lm_head"])',),
        ),
    )


@quantised_projector.bad
def four_bit_everything() -> Parameters:
    return sample_parameters(
        lambda p: (
            {"dtype": "uint8", "requires_grad": False, "in_optimizer": 0} if p.role == "projector" else {}
        )
    )


@quantised_projector.good
def language_model_only() -> Parameters:
    return sample_parameters(
        lambda p: (
            {"dtype": "uint8", "requires_grad": False, "in_optimizer": 0} if p.role == "language" else {}
        )
    )
