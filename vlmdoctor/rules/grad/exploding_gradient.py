"""exploding-gradient: gradient norms grow by orders of magnitude, over steps or over depth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from statistics import median

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters, sample_steps
from vlmdoctor.rules.grad.depth import profiles

WINDOW = 5  # samples: a healthy run has single spikes
GROWTH = 100.0
DIVERGED = 1000.0
WORSE = 0.1  # of the best loss: norms also grow while a run learns well
DEPTH_GROWTH = 1e4
DEPTH_SAMPLES = 3
STRAIGHT = 0.9


@rule(
    "exploding-gradient",
    "GRAD203",
    explains=("non-finite", "loss-not-falling", "image-ignored", "accuracy-below-gate"),
)
def exploding_gradient(parameters: Parameters, steps: Steps) -> Iterator[Finding]:
    """Exploding gradient, from step to step or from layer to layer.

    ## Why it matters
    A run that diverges ends in NaN, or stays at a loss far above its best. Clipping hides the norm and not
    the divergence ([LLaVA 463](https://github.com/haotian-liu/LLaVA/issues/463)).

    ## Confidence and false positives
    Norms are those before clipping. Over steps: each of the last five samples is at least 100 times the
    median of the calmest stretch before them, and the loss of that stretch is at least 10% above the best
    loss of the run. Single spikes, large norms at the start and norms that grow while the loss falls are not
    reported. From 1,000 times on it is an error. Over depth: the first layer's norm is 10,000 times the last
    one's, growing evenly. That the learning rate is the reason is inferred.

    ## What to do
    Lower the learning rate, warm up longer, clip at 1.0 after the scaler's unscale_ and before the step, and
    resume from a checkpoint before the named step.
    """
    yield from _over_steps(steps)
    for profile in profiles(parameters, steps):
        grows = profile.norms[0] / profile.norms[-1]
        if profile.samples < DEPTH_SAMPLES or len(profile.norms) < 4:
            continue
        if grows >= DEPTH_GROWTH and profile.correlation <= -STRAIGHT:
            yield Finding(
                f"exploding gradient through {profile.stack}: {grows:.1e} times larger at layer "
                f"{profile.depths[0]} than at layer {profile.depths[-1]}",
                Severity.WARNING,
                at=tuple(f"{profile.stack}.{depth}" for depth in (profile.depths[0], profile.depths[-1])),
                measured={"first_layer_norm": profile.norms[0], "last_layer_norm": profile.norms[-1]},
                threshold={"first_over_last": DEPTH_GROWTH},
                cause="every layer enlarges the gradient: initial weights that are too large, or no "
                "normalisation",
                fix=Fix("normalise before attention and MLP, and start with smaller weights (std 0.02)"),
            )


def _over_steps(steps: Steps) -> Iterator[Finding]:
    norms = [
        (s.step, s.grad_norm) for s in steps.sampled if s.grad_norm is not None and math.isfinite(s.grad_norm)
    ]
    losses = [(step, loss) for step, loss in steps.losses if math.isfinite(loss)]
    if len(norms) < 2 * WINDOW or len(losses) < 2 * WINDOW:
        return
    stretches = [median(n for _, n in norms[i : i + WINDOW]) for i in range(len(norms) - 2 * WINDOW + 1)]
    calm, recent = min(stretches), [norm for _, norm in norms[-WINDOW:]]
    since = norms[-WINDOW][0]
    before = [loss for step, loss in losses if step < since]
    after = [loss for step, loss in losses if step >= since]
    if calm <= 0 or min(recent) < GROWTH * calm or len(before) < WINDOW or not after:
        return
    best = min(median(before[i : i + WINDOW]) for i in range(len(before) - WINDOW + 1))
    now = median(after)
    if now < best + WORSE * abs(best):
        return
    first = next(step for step, norm in norms if norm >= GROWTH * calm and step >= since)
    factor = median(recent) / calm
    lr = next((s.lr for s in steps.steps if s.step == first), None)
    yield Finding(
        f"exploding gradient: the norm is {factor:,.0f} times what it was, and the loss rose from "
        f"{best:.3g} to {now:.3g}",
        Severity.ERROR if factor >= DIVERGED else Severity.WARNING,
        measured={"grad_norm": median(recent), "loss": now, "lr": lr},
        threshold={"grad_norm": GROWTH * calm, "loss": best + WORSE * abs(best)},
        cause="the run diverges; too high a learning rate is the usual reason, not a proven one",
        fix=Fix(
            (
                "resume from a checkpoint before this step with a lower learning rate, more warm-up, and "
                "clipping"
            ),
            ("torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",),
        ),
        step=first,
    )


@exploding_gradient.bad
def diverges() -> tuple[Parameters, Steps]:
    run = sample_steps(loss=lambda step: 6.5 - 0.02 * step if step < 200 else 2.5 + 0.04 * (step - 200))
    steps = tuple(
        dataclasses.replace(s, grad_norm=math.exp((s.step - 180) / 12)) if s.grad_norm and s.step > 180 else s
        for s in run.steps
    )
    return sample_parameters(), dataclasses.replace(run, steps=steps)


@exploding_gradient.good
def large_at_the_start() -> tuple[Parameters, Steps]:
    """Norms in the thousands while the model is fresh, clipped to 1, and a spike later on."""
    run = sample_steps()
    steps = tuple(
        dataclasses.replace(s, grad_norm=5000 * math.exp(-s.step / 20) + (900 if s.step == 250 else 1))
        if s.grad_norm
        else s
        for s in run.steps
    )
    return sample_parameters(), dataclasses.replace(run, steps=steps)
