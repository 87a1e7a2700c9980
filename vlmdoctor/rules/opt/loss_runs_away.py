"""loss-runs-away: the optimizer increases the loss of one batch."""

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
        "learning-rate-high",
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
    Steps that are too large overshoot every minimum. Causes are a learning rate for another optimizer (SGD's
    for Adam), 1e-3 typed as 1e3, a rate that was multiplied by the number of processes or by a schedule, or a
    weight decay above one. The run ends in NaN, or at a loss far above guessing ([LLaVA
    463](https://github.com/haotian-liu/LLaVA/issues/463)).

    ## Confidence and false positives
    Measured on a copy: the optimizer (with its scheduler) took eight steps on this batch; the loss ended at
    more than twice where it began, or jumped to four times that and did not come back; and AdamW at a
    moderate rate lowered the same loss. It is an error where the loss rose to ten times, or to NaN. Below
    that it is a warning, since a warm-up that is not given as `lr_scheduler` may begin at a lower rate.

    ## What to do
    Lower the learning rate, and pass the scheduler if the run has one.
    """
    users, learns = overfit.users, overfit.learns
    if users is None or learns is None or not runs_away(users):
        return
    first, last = users.losses[0], users.losses[-1]
    top = max(users.losses) if all(map(math.isfinite, users.losses)) else math.nan
    certain = not math.isfinite(top) or top > CERTAIN * first
    jump = "" if not math.isfinite(top) or last > 0.5 * top else f" over {top:.4g}"
    rate = "" if users.rate is None else f" at a learning rate of {users.rate:g}"
    yield Finding(
        f"{overfit.kind}{rate} diverges: the loss of one batch goes from {first:.4g}{jump} to {last:.4g} in "
        f"{len(users.losses) - 1} steps",
        Severity.ERROR if certain else Severity.WARNING,
        at=("the optimizer",),
        measured={"loss_first": first, "loss_last": last, "loss_top": top, "rate": users.rate},
        threshold={"loss_last": first},
        cause=f"its steps are too large: AdamW at {learns.rate:g} lowers the same loss to {learns.best:.4g} "
        f"in {len(learns.losses) - 1}"
        + ("" if overfit.scheduled else "; assumed: no other warm-up begins far lower"),
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
