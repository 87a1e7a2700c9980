"""loss-runs-away: the optimizer drives the loss of one and the same batch up, not down."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.evidence.overfit import Overfit, Try, runs_away
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

CERTAIN = 10.0  # times the first loss


@rule(
    "loss-runs-away",
    "OPT370",
    explains=(
        "non-finite",
        "exploding-gradient",
        "loss-not-falling",
        "batch-not-learned",
        "updates-too-large",
    ),
)
def loss_runs_away(overfit: Overfit) -> Iterator[Finding]:
    """Loss diverges on one batch with the given optimizer, while AdamW overfits it.

    ## Why it matters
    Steps that are too long jump over every valley: a learning rate that was meant for another optimizer
    (SGD's for Adam), 1e-3 typed as 1e3, one that was multiplied by the number of processes or by a schedule,
    a weight decay above one. The run ends in NaN, or at a loss far above guessing
    ([LLaVA 463](https://github.com/haotian-liu/LLaVA/issues/463)).

    ## Confidence and false positives
    Measured on a copy: the optimizer (with its scheduler) took eight steps on this batch; the loss ended at
    more than twice where it began, or jumped to four times that and did not come back; and AdamW at a
    moderate rate brought the same loss down. Where it jumped to ten times, or to NaN, it is an error. A
    warm-up that is not given as `lr_scheduler` could still tame such a rate, so that below that it is a
    warning.

    ## What to do
    Lower the learning rate, and pass the scheduler if the run has one.
    """
    users, learns = overfit.users, overfit.learns
    if users is None or learns is None or not runs_away(users):
        return
    first, last = users.losses[0], users.losses[-1]
    top = max(users.losses) if all(map(math.isfinite, users.losses)) else math.nan
    certain = not math.isfinite(top) or top > CERTAIN * first
    jump = "" if not math.isfinite(top) or last > 0.5 * top else f", by way of {top:.4g},"
    rate = "" if users.rate is None else f" at a learning rate of {users.rate:g}"
    yield Finding(
        f"{overfit.kind}{rate} drives the loss of one batch from {first:.4g}{jump} to "
        f"{last:.4g} in {len(users.losses) - 1} steps",
        Severity.ERROR if certain else Severity.WARNING,
        at=("the optimizer",),
        measured={"loss_first": first, "loss_last": last, "loss_top": top, "rate": users.rate},
        threshold={"loss_last": first},
        cause=f"its steps are too long: AdamW at {learns.rate:g} brings the same loss down to "
        f"{learns.best:.4g} in {len(learns.losses) - 1}"
        + ("" if overfit.scheduled else "; assumed: no warm-up that is not given here begins far lower"),
        fix=Fix("lower the learning rate, and give the scheduler if the run has one"),
    )


@loss_runs_away.bad
def rate_of_a_thousand() -> Overfit:
    users = Try(rate=1000.0, losses=(5.6, 210.0, 1900.0, 1300.0))
    return Overfit(users=users, ours=(Try(rate=3e-3, losses=(5.6, 5.2, 4.8)),), kind="SGD")


@loss_runs_away.bad
def beyond_all_slopes() -> Overfit:
    users = Try(rate=1000.0, losses=(5.6, 29730.0, 5.55, 5.55))
    return Overfit(users=users, ours=(Try(rate=3e-3, losses=(5.6, 5.2, 4.8)),), kind="SGD")


@loss_runs_away.bad
def ends_in_nan() -> Overfit:
    return Overfit(
        users=Try(rate=10.0, losses=(5.6, 80.0, math.nan)),
        ours=(Try(rate=3e-3, losses=(5.6, 5.2, 4.8)),),
        kind="AdamW",
    )


@loss_runs_away.good
def learns() -> Overfit:
    return Overfit(users=Try(rate=1e-3, losses=(5.6, 5.3, 4.9)), kind="AdamW")


@loss_runs_away.good
def spikes_at_first() -> Overfit:
    return Overfit(
        users=Try(rate=1e-2, losses=(5.6, 9.4, 7.7, 6.2)),
        ours=(Try(rate=3e-3, losses=(5.6, 5.2, 4.8)),),
        kind="AdamW",
    )
