"""duplicate-parameters: parameters that are in the optimizers more than once."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters
from vlmdoctor.rules.places import counted, places


@rule("duplicate-parameters", "OPT103", formerly=("stepped-twice",))
def duplicate_parameters(parameters: Parameters) -> Iterator[Finding]:
    """Duplicate parameters in the optimizer.

    ## Why it matters
    They are updated twice per step, with twice the intended learning rate and weight decay. Causes are tied
    embeddings that are listed as embedding and as head, and groups selected by overlapping names. Within one
    optimizer PyTorch only warns, between two of them nothing does.

    ## Confidence and false positives
    Certain: tensors are compared by identity, over all optimizers that were given.

    ## What to do
    Give every tensor to one group of one optimizer.
    """
    twice = [p for p in parameters.parameters if (p.in_optimizer or 0) > 1 and p.requires_grad]
    if not twice:
        return
    yield Finding(
        (
            f"{counted(len(twice), 'parameter')} {'is' if len(twice) == 1 else 'are'} in the optimizer "
            "more than once"
        ),
        Severity.WARNING,
        at=places([p.name for p in twice], [p.name for p in parameters.parameters]),
        measured={"times": max(p.in_optimizer or 0 for p in twice)},
        threshold={"times": 1},
        cause="several parameter groups or optimizers hold the same tensor, and each of them updates it",
        fix=Fix("list every tensor once", ("params = list({id(p): p for p in params}.values())",)),
    )


@duplicate_parameters.bad
def two_optimizers() -> Parameters:
    return sample_parameters(lambda p: {"in_optimizer": 2 if p.name == "lm_head.weight" else 1})


@duplicate_parameters.good
def once() -> Parameters:
    return sample_parameters()
