"""parameters-not-registered: the loss depends on parameters that are not in `model.parameters()`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmdoctor.evidence.weights_in_use import Stranger, WeightsInUse
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted


@rule("parameters-not-registered", "PARAM110")
def parameters_not_registered(use: WeightsInUse) -> Iterator[Finding]:
    """Parameters not registered: layers in a plain list, or made inside forward.

    ## Why it matters
    A module in a Python list or dict is not registered: an optimizer over `model.parameters()` never updates
    it, `.to(device)` does not move it, and checkpoints don't hold it. A layer that forward creates has other
    random weights each time. The loss may fall all the same, since everything else learns.

    ## Confidence and false positives
    The graph of the loss was followed to its leaves: each of these parameters requires gradients and is used.
    Those that an optimizer holds are not reported. Where no optimizer was given, it is assumed that it is
    made from `model.parameters()`: a warning.

    ## What to do
    Keep layers in `nn.ModuleList` or `nn.ModuleDict`, parameters in `nn.ParameterList`, and create them in
    `__init__`.
    """
    strangers = [s for s in use.strangers if not s.in_optimizer]
    anew = [s for s in strangers if s.anew]
    kept = [s for s in strangers if not s.anew and s.name is not None]
    if anew:
        yield Finding(
            f"the forward pass creates {counted(len(anew), 'parameter')} again each time",
            Severity.ERROR,
            at=_at(anew),
            measured={"parameters": len(anew), "shapes": [list(s.shape) for s in anew[:4]]},
            threshold={"parameters": 0},
            cause="a layer or parameter is created inside forward: its weights are random in each pass, and "
            "no update is kept",
            fix=Fix("create it once, in __init__"),
        )
    if kept:
        sure = use.optimizer_given
        yield Finding(
            f"{counted(len(kept), 'parameter')} that the loss depends on "
            f"{'is' if len(kept) == 1 else 'are'} not registered with the model",
            Severity.ERROR if sure else Severity.WARNING,
            at=_at(kept),
            measured={"parameters": len(kept), "shapes": [list(s.shape) for s in kept[:4]]},
            threshold={"parameters": 0},
            cause="they are in a plain list, mapping or tensor attribute, which model.parameters() does not "
            "contain"
            + (
                ": the optimizer does not hold them"
                if sure
                else "; assumed, not known: that the optimizer is made from it"
            ),
            fix=Fix("register them with a container module", ("nn.ModuleList([...])",)),
        )


def _at(strangers: Sequence[Stranger]) -> tuple[str, ...]:
    return tuple(s.name for s in strangers if s.name)[:8]


@parameters_not_registered.bad
def layers_in_a_list() -> WeightsInUse:
    return WeightsInUse(
        strangers=(Stranger(name="decoder.extra[0].weight", shape=(64, 64), anew=False, in_optimizer=False),),
        optimizer_given=True,
    )


@parameters_not_registered.bad
def layer_made_in_forward() -> WeightsInUse:
    return WeightsInUse(strangers=(Stranger(name=None, shape=(64, 48), anew=True, in_optimizer=False),))


@parameters_not_registered.good
def all_registered() -> WeightsInUse:
    return WeightsInUse(optimizer_given=True)


@parameters_not_registered.good
def temperature_of_the_loss() -> WeightsInUse:
    """A loss with a parameter of its own, which the optimizer holds."""
    return WeightsInUse(
        strangers=(Stranger(name=None, shape=(1,), anew=False, in_optimizer=True),), optimizer_given=True
    )
