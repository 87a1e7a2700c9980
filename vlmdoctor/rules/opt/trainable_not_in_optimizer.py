"""trainable-not-in-optimizer: parameters that require gradients and that no optimizer will step."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import frozen, sample_parameters
from vlmdoctor.rules.places import counted, listed, places, share_of

LARGE_SHARE = 0.01


@rule(
    "trainable-not-in-optimizer",
    "OPT104",
    explains=("loss-not-falling", "image-ignored", "accuracy-below-gate"),
)
def trainable_not_in_optimizer(parameters: Parameters) -> Iterator[Finding]:
    """Trainable parameters missing from the optimizer.

    ## Why it matters
    They get gradients and never change. The optimizer was made before they were unfrozen, added or wrapped,
    or its parameter groups are selected by names that miss them ([fastai
    2133](https://github.com/fastai/fastai/issues/2133), [rslearn
    217](https://github.com/allenai/rslearn/issues/217), [LLaVA
    1173](https://github.com/haotian-liu/LLaVA/issues/1173)).

    ## Confidence and false positives
    Certain for the optimizers that were given; give all of them (`optimizer=[first, second]`). It is an error
    where a whole part of the model is missing or more than 1% of the trainable numbers, a warning otherwise.
    Nothing is reported where the optimizer holds none of the model's tensors: sharding libraries update
    copies of their own.

    ## What to do
    Make the optimizer after unfreezing, from everything that requires gradients; or freeze what should not
    learn."""
    trainable = [p for p in parameters.parameters if p.requires_grad and p.in_optimizer is not None]
    absent = [p for p in trainable if p.in_optimizer == 0]
    if not absent or (parameters.foreign and not any(p.in_optimizer for p in parameters.parameters)):
        return
    roles = dict.fromkeys(p.role for p in absent if p.role != "other")
    whole = [role for role in roles if all(p in absent for p in trainable if p.role == role)]
    share = share_of(absent, trainable)
    what = listed(whole) if whole else counted(len(absent), "trainable parameter")
    many = len(whole or absent) > 1
    yield Finding(
        f"{what} {'are' if many else 'is'} trainable but not in the optimizer",
        Severity.ERROR if whole or share >= LARGE_SHARE else Severity.WARNING,
        at=places([p.name for p in absent], [p.name for p in trainable]),
        measured={"parameters": len(absent), "share_of_trainable": round(share, 4)},
        threshold={"parameters": 0},
        cause="none of its parameter groups holds them: they require gradients, and no step will change them",
        fix=Fix(
            "make the optimizer after unfreezing, from everything that should learn",
            ("optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)",),
        ),
        parameters=tuple(p.name for p in absent),
    )


@trainable_not_in_optimizer.bad
def projector_unfrozen_too_late() -> Parameters:
    return sample_parameters(lambda p: {"in_optimizer": int(p.role != "projector")})


@trainable_not_in_optimizer.good
def no_optimizer_given() -> Parameters:
    return sample_parameters(lambda p: {"in_optimizer": None, "lr": None})


@trainable_not_in_optimizer.good
def frozen_tower_left_out() -> Parameters:
    return sample_parameters(lambda p: frozen("vision")(p) | {"in_optimizer": int(p.role != "vision")})
