"""frozen-untrained: a frozen part holds the weights of a fresh initialisation."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.initialisation import FrozenWeights, Initialisation
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import shared_parts

_CALLED = {"vision": "vision encoder", "language": "language model", "projector": "projector"}


@rule("frozen-untrained", "PARAM104", explains=("wrong-image",))
def frozen_untrained(weights: Initialisation, parameters: Parameters | None) -> Iterator[Finding]:
    """Frozen part with random weights: it was never trained and never will be.

    ## Why it matters
    A frozen vision encoder with random weights gives features that say little of the image, and the rest of
    the model learns to do without them. Nothing raises and the loss falls. The pretrained weights were not
    loaded, or the part was frozen before they should have been.

    ## Confidence and false positives
    All tensors of the part are frozen, and all are as an initialisation leaves them: matrices fill the
    interval of torch's default (or Xavier's or Kaiming's) evenly and to its ends, or norms are exactly one
    and biases exactly zero throughout. No training leaves weights so. Models built from a configuration of
    transformers are compared with their checkpoint instead. It is a warning, since random features may be
    meant, and a check may be made before weights are loaded. With adapters attached nothing is reported: the
    base is frozen on purpose then, and trials of a small random model are common.

    ## What to do
    Load the pretrained weights before the check and before freezing, or let the part learn.
    """
    if parameters is not None and parameters.adapters:
        return
    for part in weights.parts:
        if part.learning or not part.fresh:
            continue
        name = _CALLED[part.role]
        how = (
            f"{_filling(part.uniform)} the interval of a fresh initialisation evenly, to its ends"
            if part.uniform and not part.unclear
            else f"{part.unit_norms} norms are exactly one and {part.zero_biases} biases exactly zero"
        )
        root = _root(part.names)
        yield Finding(
            f"the frozen {name} has random weights: it was never trained and can't learn",
            Severity.WARNING,
            at=(root,),
            measured={
                "frozen_parameters": part.numbers,
                "even_matrices": part.uniform,
                "unit_norms": part.unit_norms,
                "zero_biases": part.zero_biases,
                "trained_tensors": part.trained,
            },
            threshold={"trained_tensors": 1},
            cause=f"requires_grad is False, and {how}: pretrained weights were not loaded",
            fix=Fix(
                "load the pretrained weights before freezing, or let it learn",
                (f"model.{root}.load_state_dict(pretrained)", f"model.{root}.requires_grad_(True)"),
            ),
            parameters=part.names,
        )


def _filling(matrices: int) -> str:
    return "its weight matrix fills" if matrices == 1 else f"{matrices} weight matrices fill"


def _root(names: tuple[str, ...]) -> str:
    """The module that all of them are in."""
    shared = shared_parts(names)
    while shared and shared[-1].isdigit():
        shared.pop()  # a list or a sequence has attributes by number only
    return ".".join(shared) or "vision"


def _sample(**fields: int) -> Initialisation:
    names = ("vision.0.weight", "vision.0.bias", "vision.2.weight", "vision.2.bias")
    return Initialisation(parts=(FrozenWeights(role="vision", names=names, numbers=4160, **fields),))


@frozen_untrained.bad
def a_default_initialisation() -> Initialisation:
    return _sample(uniform=2)


@frozen_untrained.bad
def norms_of_one_and_biases_of_zero() -> Initialisation:
    return _sample(unclear=12, unit_norms=5, zero_biases=12)


@frozen_untrained.good
def pretrained() -> Initialisation:
    return _sample(unclear=12, trained=17)


@frozen_untrained.good
def matrices_alone_say_nothing() -> Initialisation:
    return _sample(unclear=12)


@frozen_untrained.good
def part_of_it_learns() -> Initialisation:
    return _sample(uniform=2, learning=4)
