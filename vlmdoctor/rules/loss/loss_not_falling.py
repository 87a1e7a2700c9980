"""loss-not-falling: the run has had time to learn and the loss is where it began."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, median

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import VOCABULARY, sample_parameters, sample_steps

ENOUGH = 100  # steps after the warm-up
FALL = 0.02  # of the loss at the start
FIRST = 5
CLEAR = 2.0  # standard errors of a slope that count as falling, if it makes up `FALL` in SOON times the steps
SOON = 5
GUESSING = 0.75  # of ln(vocabulary): below it a run of unknown origin has learned before
LOW = 0.5  # of ln(vocabulary): an untrained model that is below it has fallen already
LARGEST = 1e30  # beyond it (or NaN) `non-finite` reports, and squares overflow
RISE, RISE_FLOOR = 1.5, 0.5  # times the best stretch, and at least so much


@rule("loss-not-falling", "LOSS101", explains=("image-ignored", "accuracy-below-gate"))
def loss_not_falling(steps: Steps, parameters: Parameters | None) -> Iterator[Finding]:
    """Loss not decreasing: it is still where it began, or back there.

    ## Why it matters
    Most faults end in this symptom: weights that were not loaded ([MiniMind-V
    75](https://github.com/jingyaogong/minimind-v/issues/75): flat at 7.3 to 7.5), parts that are frozen or
    get no gradient, a learning rate of zero or far too high. Where one of those is found, this finding is
    folded under it.

    ## Confidence and false positives
    That the loss does not fall is measured over at least 100 steps after the warm-up: the last fifth is not
    2% below the first fifth nor below the first losses, and a straight line through all of them does not fall
    clearly (by two standard errors, fast enough to make up 2% in five times as many steps). A loss that falls
    slowly is not reported, nor a short run, nor a run that continues from trained weights and is below three
    quarters of ln(vocabulary). The reason is not known from the loss. A loss that had fallen and rose again
    by half is reported too.

    ## What to do
    Try to overfit one single batch: if the model can't, something is wired wrongly; if it can, look at the
    learning rate and the data. Check that the checkpoint was really loaded."""
    losses = [(step, loss) for step, loss in _after_warmup(steps) if abs(loss) < LARGEST]
    if len(losses) < ENOUGH or steps.resumed:
        return
    values = [loss for _, loss in losses]
    fifth = len(values) // 5
    # A run that first jumps up and comes back down has not learned either: it is compared with the start.
    first = min(fmean(values[:fifth]), median([loss for _, loss in steps.losses][:FIRST]))
    last = fmean(values[-fifth:])
    chance = math.log(parameters.vocab_size) if parameters and parameters.vocab_size else None
    best = min(fmean(values[i : i + fifth]) for i in range(len(values) - fifth + 1))
    measured = {"loss_first": first, "loss_last": last, "steps": len(values)}
    if last > RISE * best and last > best + RISE_FLOOR:
        yield Finding(
            f"the loss rose from {best:.3g} to {last:.3g} and stays there",
            Severity.WARNING,
            measured=measured | {"loss_best": best},
            threshold={"loss_last": RISE * best},
            cause="the run diverged or its data changed; which of these was not established",
            certainty=Certainty.INFERRED,
            fix=Fix("resume from a checkpoint at the best loss with a lower learning rate and clipping"),
            step=losses[-fifth][0],
        )
        return
    known = steps.resumed is False
    floor = chance and (LOW if known else GUESSING) * chance
    if (not known and floor is None) or (floor is not None and last < floor):
        return
    slope, error = _slope(losses)
    clearly = slope < -CLEAR * error and -slope * SOON * (losses[-1][0] - losses[0][0]) >= FALL * first
    if last <= (1 - FALL) * first or (last < first and clearly):
        return
    at_chance = chance is not None and abs(last - chance) < 0.1 * chance
    yield Finding(
        f"the loss does not fall: {first:.3g} at the start, {last:.3g} after {len(values)} steps",
        Severity.ERROR if known else Severity.WARNING,
        measured=measured,
        threshold={"loss_last": (1 - FALL) * first},
        cause=(
            (
                f"the model still guesses: ln(vocab_size {parameters.vocab_size}) is {chance:.3g}; "
                if parameters and at_chance
                else ""
            )
            + "no cause was found in what was measured (gradients, weights, optimizer)"
        ),
        fix=Fix(
            "try to overfit one batch; if that works, raise the learning rate and look at the labels, if "
            "not, check that the weights were loaded and that the labels are the next tokens",
            (
                (
                    "for _ in range(200): loss = model(**batch).loss; loss.backward(); optimizer.step(); "
                    "optimizer.zero_grad()"
                ),
            ),
        ),
    )


def _after_warmup(steps: Steps) -> list[tuple[int, float]]:
    rates = {s.step: s.lr for s in steps.steps if s.lr is not None and math.isfinite(s.lr)}
    top = max(rates.values(), default=0.0)
    warm = next((step for step, lr in sorted(rates.items()) if lr >= 0.9 * top), 0)
    return [(step, loss) for step, loss in steps.losses if step >= warm]


def _slope(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The slope of a straight line through the points, and its standard error."""
    x_mean, y_mean = fmean(x for x, _ in points), fmean(y for _, y in points)
    xx = sum((x - x_mean) ** 2 for x, _ in points)
    if xx == 0:
        return 0.0, 0.0
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / xx
    rest = sum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in points) / max(1, len(points) - 2)
    return slope, math.sqrt(rest / xx)


@loss_not_falling.bad
def flat_at_chance() -> tuple[Steps, Parameters]:
    return sample_steps(
        loss=lambda step: math.log(VOCABULARY) + 0.1 * math.sin(7 * step)
    ), sample_parameters()


@loss_not_falling.good
def noisy_and_slow() -> tuple[Steps, Parameters]:
    return sample_steps(loss=lambda step: 6.5 - 0.002 * step + 0.3 * math.sin(7 * step)), sample_parameters()


@loss_not_falling.good
def fine_tuning() -> tuple[Steps, Parameters]:
    """From trained weights: the loss is low from the start and hardly moves."""
    return sample_steps(loss=lambda step: 1.1 + 0.1 * math.sin(7 * step), resumed=None), sample_parameters()
