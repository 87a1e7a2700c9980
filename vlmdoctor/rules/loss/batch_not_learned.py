"""batch-not-learned: one batch can't be overfit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.overfit import FALLS, Overfit, Try
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters

ENOUGH = 24  # steps
TRIES = 3  # learning rates
STILL_GUESSING = 0.7  # of ln(vocabulary): below it there may be little left to learn
MEANT = 0.5  # of the parameters: where few are trained, a batch may be beyond them
REACHED = 0.9  # of the trainable tensors have a gradient: else other rules say what is wrong


@rule("batch-not-learned", "LOSS377")
def batch_not_learned(
    overfit: Overfit, forward: Forward, backward: Backward, parameters: Parameters
) -> Iterator[Finding]:
    """One batch can't be overfit, although nearly all weights are trained.

    ## Why it matters
    A language model overfits a handful of answers within a few dozen steps. If it can't, neither more data
    nor more steps will help: something between the weights and the loss is wired wrongly.

    ## Confidence and false positives
    On a copy, with dropout off, AdamW took 24 steps on the given batch at each of several learning rates from
    3e-5 to 3e-2, and none lowered the loss by 3%. It is tried only where the loss starts near ln(vocabulary),
    half of the parameters or more are trained, and nearly all of them get a gradient. It is a warning, since
    the cause is not known; equal prompts with different answers can't be learned either.

    ## What to do
    Look at the logits of two steps: do they change? Is the loss computed from them? Are the labels the same
    from call to call?
    """
    if forward.loss is None or not forward.vocab_size or not forward.supervised_tokens:
        return
    guessing = math.log(forward.vocab_size)
    weights = [(math.prod(p.shape), p.requires_grad) for p in parameters.parameters]
    trained = sum(size for size, trains in weights if trains) / max(1, sum(size for size, _ in weights))
    reached = [g for g in backward.gradients if g.present and not g.zero and g.finite]
    if forward.loss < STILL_GUESSING * guessing or trained < MEANT:
        return
    if len(reached) < REACHED * len(backward.gradients):
        return
    whole = [attempt for attempt in overfit.ours if len(attempt.losses) > ENOUGH]
    every = [*overfit.ours, *([overfit.users] if overfit.users else [])]
    if len(whole) < TRIES or any(attempt.falls for attempt in every):
        return
    best = min(overfit.ours, key=lambda attempt: attempt.best)
    yield Finding(
        f"one batch can't be overfit: its loss goes from {best.losses[0]:.4g} to {best.best:.4g}",
        Severity.WARNING,
        at=("the loss",),
        measured={"loss_first": best.losses[0], "loss_best": best.best, "rates": [a.rate for a in whole]},
        threshold={"loss_best": FALLS * best.losses[0]},
        cause="no cause was established: gradients reach the weights, and steps along them change the loss "
        "little",
        certainty=Certainty.INFERRED,
        fix=Fix(
            "check whether the logits change between two steps, and whether the loss is computed from them"
        ),
    )


def _healthy() -> tuple[Forward, Parameters]:
    forward = Forward(loss=6.5, finite=True, logits_shape=(2, 8, 680), vocab_size=680, supervised_tokens=10)
    return forward, sample_parameters()


def _reached() -> Backward:
    from vlmdoctor.evidence.backward import Gradient

    _, parameters = _healthy()
    gradients = tuple(
        Gradient(name=p.name, role=p.role, present=True, zero=False, finite=True, norm=1e-3)
        for p in parameters.parameters
    )
    return Backward(loss=6.5, gradients=gradients, trainable=len(gradients), parameters=len(gradients))


@batch_not_learned.bad
def nothing_helps() -> tuple[Overfit, Forward, Parameters, Backward]:
    flat = tuple(6.5 - 0.001 * step for step in range(25))
    tries = tuple(Try(rate=rate, losses=flat) for rate in (3e-3, 3e-4, 3e-2, 3e-5))
    return Overfit(users=None, ours=tries), *_healthy(), _reached()


@batch_not_learned.good
def learned_at_another_rate() -> tuple[Overfit, Forward, Parameters, Backward]:
    flat = tuple(6.5 - 0.001 * step for step in range(25))
    tries = (Try(rate=3e-3, losses=flat), Try(rate=3e-4, losses=(6.5, 6.1, 5.8)))
    return Overfit(users=None, ours=tries), *_healthy(), _reached()
