"""optimizer-holds-other-tensors: the optimizer was made for another copy of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters
from vlmdoctor.rules.places import counted


@rule(
    "optimizer-holds-other-tensors",
    "OPT105",
    explains=("loss-not-falling", "image-ignored", "accuracy-below-gate"),
)
def optimizer_holds_other_tensors(parameters: Parameters) -> Iterator[Finding]:
    """Optimizer holds none of the model's parameters, but other tensors.

    ## Why it matters
    If the model is built, converted or replaced after its optimizer was made, every step updates tensors that
    are not in the model any more, and the model does not change.

    ## Confidence and false positives
    That no tensor of the model is in the optimizer is certain. A library that keeps float32 copies of its own
    looks the same, so it is a warning; once steps were watched, `weights-not-moving` measures whether the
    model changes. Optimizers with far fewer tensors than the model (flat shards) are not reported.

    ## What to do
    Make the optimizer last: after building, loading, moving and wrapping the model.
    """
    trainable = [p for p in parameters.parameters if p.requires_grad and p.in_optimizer is not None]
    if not trainable or any(p.in_optimizer for p in parameters.parameters):
        return
    if parameters.foreign < max(1, len(trainable) // 2):
        return
    yield Finding(
        "the optimizer holds none of the model's parameters, but other tensors",
        Severity.WARNING,
        at=("optimizer",),
        measured={"tensors_of_the_model": 0, "other_tensors": parameters.foreign},
        threshold={"tensors_of_the_model": len(trainable)},
        cause=(
            f"it holds {counted(parameters.foreign, 'tensor')} that are not in the model, as if the model "
            "was built or converted again after the optimizer was made; copies that a library keeps on "
            "purpose look the same"
        ),
        fix=Fix(
            "make the optimizer after the model is complete",
            ("optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)",),
        ),
    )


@optimizer_holds_other_tensors.bad
def model_built_again() -> Parameters:
    known = sample_parameters(lambda p: {"in_optimizer": 0, "lr": None})
    return dataclasses.replace(known, foreign=len(known.parameters))


@optimizer_holds_other_tensors.good
def flat_shards() -> Parameters:
    return dataclasses.replace(sample_parameters(lambda p: {"in_optimizer": 0, "lr": None}), foreign=2)
