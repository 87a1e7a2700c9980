"""dropout-too-high: nearly everything is dropped while training."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.dropouts import Dropout, Dropouts
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

HIGH = 0.8


@rule("dropout-too-high", "PARAM370")
def dropout_too_high(dropouts: Dropouts) -> Iterator[Finding]:
    """A dropout takes out four fifths or more of what passes through it.

    ## Why it matters
    torch's `p` is the share that is *dropped*. Where it was meant as the share that is kept, 0.9 leaves a
    tenth, scaled up tenfold: what is learned behind it is mostly noise, the loss falls slowly and stays high,
    and evaluation, which drops nothing, looks far better than training.

    ## How sure it is
    The rate is read off the module. That it is not meant is assumed, since hardly any model gains from rates
    above one half: a warning from 0.8 on.

    ## What to do
    Set the share that is to be dropped, such as `nn.Dropout(0.1)`.
    """
    high = [place for place in dropouts.places if place.rate >= HIGH and place.trains]
    if not high:
        return
    worst = max(high, key=lambda place: place.rate)
    left = 1 - worst.rate
    yield Finding(
        f"{worst.name} drops {worst.rate:.0%} of what passes through it while training"
        + (f" ({len(high)} such places)" if len(high) > 1 else ""),
        Severity.WARNING,
        at=tuple(place.name for place in high[:8]),
        measured={"rate": worst.rate, "places": len(high)},
        threshold={"rate": HIGH},
        cause="p is the share that is dropped, not the share that is kept: assumed is that "
        f"{left:.2g} was to be dropped and {worst.rate:.2g} kept",
        fix=Fix("give the share that is to be dropped", (f"nn.Dropout(p={left:.2g})",)),
    )


@dropout_too_high.bad
def share_to_keep() -> Dropouts:
    return Dropouts((Dropout("MP.drop", 0.9), Dropout("decoder.blocks.0.drop", 0.1)))


@dropout_too_high.good
def usual_rates() -> Dropouts:
    return Dropouts((Dropout("MP.drop", 0.5), Dropout("decoder.blocks.0.drop", 0.1)))
