"""trained-by-mistake: parameters outside the declared names are trainable."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters
from vlmdoctor.rules.places import counted, module_of, places


@rule("trained-by-mistake", "PARAM103")
def trained_by_mistake(parameters: Parameters) -> Iterator[Finding]:
    """Trained by mistake: parameters outside the declared ones are trainable.

    ## Why it matters
    Every step changes a part that should stay frozen, such as the vision tower of a trained model, and its
    optimizer state takes twice its memory. Typical causes are outdated name patterns and freezing code that
    misses a position embedding ([lerobot 4019](https://github.com/huggingface/lerobot/issues/4019),
    [LlamaFactory 10139](https://github.com/hiyouga/LlamaFactory/issues/10139)).

    ## Confidence and false positives
    Certain: these parameters have `requires_grad`, are in the optimizer where one was given, and none of the
    declared patterns matches their names. Without a declaration nothing is reported. Adapters' own weights
    are not counted.

    ## What to do
    Freeze them, or add them to what you declare.
    """
    if not any(p.wanted for p in parameters.parameters):
        return
    learning = [
        p
        for p in parameters.parameters
        if p.wanted is False and p.requires_grad and p.in_optimizer != 0 and "lora_" not in p.name
    ]
    if not learning:
        return
    where = places([p.name for p in learning], [p.name for p in parameters.parameters])
    declared = [p for p in parameters.parameters if p.wanted]
    wanted = [
        [p.name for p in declared if p.role == role] for role in dict.fromkeys(p.role for p in declared)
    ]
    yield Finding(
        f"{counted(len(learning), 'parameter')} outside what was declared as trainable "
        f"{'is' if len(learning) == 1 else 'are'} trainable",
        Severity.WARNING,
        at=where,
        measured={"trainable_parameters": sum(p.numel for p in learning)},
        threshold={"trainable_parameters": 0},
        cause="requires_grad is True on them, and no declared pattern matches their names",
        fix=Fix(
            "freeze everything first, then unfreeze what should learn",
            (
                "model.requires_grad_(False)",
                *(f"{module_of(names)}.requires_grad_(True)" for names in wanted[:4]),
            ),
        ),
    )


@trained_by_mistake.bad
def tower_still_trains() -> Parameters:
    return sample_parameters(lambda p: {"wanted": p.role != "vision"})


@trained_by_mistake.good
def as_declared() -> Parameters:
    return sample_parameters(
        lambda p: {
            "wanted": p.role != "vision",
            "requires_grad": p.role != "vision",
            "in_optimizer": int(p.role != "vision"),
        }
    )
