"""zero-weights-block: weights that are all zero block the gradient, and stay zero."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.zero_weights import ZeroWeights
from vlmdoctor.finding import Finding, Fix, Proof, Severity
from vlmdoctor.knowledge.parameter_names import role_of
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted

PARTS = {"vision", "projector", "language", "head"}


@rule(
    "zero-weights-block",
    "GRAD210",
    explains=(
        "no-gradient",
        "image-without-effect",
        "wrong-image",
        "weights-not-moving",
        "vanishing-gradient",
    ),
)
def zero_weights_block(zero: ZeroWeights) -> Iterator[Finding]:
    """Weights are all zero, and every gradient behind them stays exactly zero.

    ## Why it matters
    One layer that starts at zero learns: its own gradient is not zero. Two in a row, or a frozen one, never
    learn: each multiplies the other's gradient by zero. It happens where an initialisation is applied to all
    layers, where tensors were made by `torch.empty` or `to_empty` and never filled, or where weights are
    missing from a checkpoint and the part that lacks them is frozen.

    ## Confidence and false positives
    It was tried: with small random numbers instead of those zeros, for one pass, the named gradients are not
    zero any more. A single layer that starts at zero by design (the second matrix of LoRA, gates, the last
    layer of a branch) gets a gradient and is not reported.

    ## What to do
    Initialise all but the last of the layers with small random numbers; load what is missing; unfreeze it.
    """
    if not zero.zeros or not zero.woken:
        return
    whole = not zero.reached or PARTS & {role_of(name) for name in zero.woken}
    frozen = [name for name, trainable in zero.zeros if not trainable]
    yield Finding(
        f"{counted(len(zero.zeros), 'weight tensor')} of nothing but zeros "
        f"let{'s' if len(zero.zeros) == 1 else ''} no gradient through to "
        f"{counted(len(zero.woken), 'parameter')}",
        Severity.ERROR if whole else Severity.WARNING,
        at=tuple(name for name, _ in zero.zeros)[:8],
        measured={
            "zero_tensors": len(zero.zeros),
            "of_them_frozen": len(frozen),
            "parameters_with_a_gradient_of_zero": zero.still,
        },
        threshold={"parameters_with_a_gradient_of_zero": zero.still - len(zero.woken)},
        cause="they are frozen, so they stay at zero"
        if len(frozen) == len(zero.zeros)
        else "they multiply each other's gradients by zero, so all of them stay at zero",
        proof=Proof(
            "small random numbers instead of the zeros",
            before=f"{zero.still} parameters have a gradient of exactly zero",
            after=f"{len(zero.woken)} of them have one that is not",
        ),
        fix=Fix(
            "initialise them",
            tuple(f'torch.nn.init.normal_(model.get_parameter("{n}"), std=0.02)' for n, _ in zero.zeros[:2]),
        ),
        parameters=zero.woken,
    )


@zero_weights_block.bad
def both_layers_of_the_projector() -> ZeroWeights:
    zeros = (("vision_proj.0.weight", True), ("vision_proj.2.weight", True))
    return ZeroWeights(
        zeros=zeros, woken=("vision_proj.0.weight", "vision_proj.2.weight"), still=30, reached=52
    )


@zero_weights_block.bad
def frozen_at_zero() -> ZeroWeights:
    return ZeroWeights(
        zeros=(("vision_proj.weight", False),), woken=("vision_encoder.weight",), still=12, reached=52
    )


@zero_weights_block.good
def nothing_is_zero() -> ZeroWeights:
    return ZeroWeights(reached=70)


@zero_weights_block.good
def experts_without_a_token() -> ZeroWeights:
    """Gradients of zero, which no weights of zero explain."""
    return ZeroWeights(zeros=(("experts.3.weight", False),), woken=(), still=4, reached=66)
