"""vanishing-gradient: the gradient decays from layer to layer on its way to the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters, sample_steps
from vlmdoctor.rules.grad.depth import profiles

SAMPLES = 3
LAYERS = 4
DECAY = 1e3  # healthy residual stacks of 8 to 32 layers stay within 100, fresh or trained
HOPELESS = 1e6  # the rest drowns in the rounding noise of float32
STRAIGHT = 0.9  # of the logarithm over depth: a decay, not one odd layer


@rule(
    "vanishing-gradient",
    "GRAD202",
    explains=("no-gradient", "loss-not-falling", "image-ignored", "accuracy-below-gate"),
)
def vanishing_gradient(parameters: Parameters, steps: Steps) -> Iterator[Finding]:
    """Vanishing gradient through a stack of layers.

    ## Why it matters
    If each layer passes on only a part of the gradient, the layers nearest the input learn exponentially
    slower than the last ones. Stacks without residual connections, saturating activations, a residual branch
    scaled down, or normalisation after the addition do that ([Glorot and Bengio
    2010](https://proceedings.mlr.press/v9/glorot10a.html), [Xiong et al.
    2020](https://arxiv.org/abs/2002.04745)).

    ## Confidence and false positives
    The norms are measured before clipping, as the median over at least three sampled steps, for stacks of at
    least four layers that learn. It is reported from a factor of 1,000 between the last layer and the first,
    if the logarithm of the norm follows a straight line; residual stacks with pre-normalisation stay within
    about 100. Above a million it is an error. Adam rescales small gradients, so a run may still learn,
    slowly. Frozen layers are not judged.

    ## What to do
    Check that each block adds its input to its output, and that normalisation comes before attention and MLP.
    """
    for profile in profiles(parameters, steps):
        enough = profile.samples >= SAMPLES and len(profile.norms) >= LAYERS
        if not enough or profile.growth < DECAY or profile.correlation < STRAIGHT:
            continue
        rate = profile.growth ** (1 / (profile.depths[-1] - profile.depths[0]))
        yield Finding(
            f"vanishing gradient through {profile.stack}: {profile.growth:.1e} times smaller at layer "
            f"{profile.depths[0]} than at layer {profile.depths[-1]}",
            Severity.ERROR if profile.growth >= HOPELESS else Severity.WARNING,
            at=tuple(f"{profile.stack}.{depth}" for depth in (profile.depths[0], profile.depths[-1])),
            measured={
                "first_layer_norm": profile.norms[0],
                "last_layer_norm": profile.norms[-1],
                "factor_per_layer": rate,
                "sampled_steps": profile.samples,
            },
            threshold={"last_over_first": DECAY},
            cause=(
                f"each layer passes on about 1/{rate:.1f} of the gradient; the reason was not established "
                "(no residual connection, a saturated activation, or normalisation after the addition)"
            ),
            certainty=Certainty.INFERRED,
            fix=Fix(
                "add each block's input to its output, and normalise before attention and MLP",
                ("x = x + self.attention(self.norm1(x))", "x = x + self.mlp(self.norm2(x))"),
            ),
        )


@vanishing_gradient.bad
def no_residual() -> tuple[Parameters, Steps]:
    parameters = sample_parameters()
    run = sample_steps(loss=lambda step: 6.5 - 0.004 * step)
    layers = [f"model.lm.layers.{depth}" for depth in range(8)]
    steps = tuple(
        dataclasses.replace(
            s,
            layer_grad_norms=dict(s.layer_grad_norms)
            | {layer: 4.0**i * 1e-5 for i, layer in enumerate(layers)},
        )
        if s.grad_norm
        else s
        for s in run.steps
    )
    return parameters, dataclasses.replace(run, steps=steps)


@vanishing_gradient.good
def residual() -> tuple[Parameters, Steps]:
    """Norms that differ by a factor of 40 between the layers, as healthy towers' do."""
    run = sample_steps()
    layers = [f"model.lm.layers.{depth}" for depth in range(8)]
    steps = tuple(
        dataclasses.replace(
            s,
            layer_grad_norms=dict(s.layer_grad_norms)
            | {layer: 0.02 * 1.7**i for i, layer in enumerate(layers)},
        )
        if s.grad_norm
        else s
        for s in run.steps
    )
    return sample_parameters(), dataclasses.replace(run, steps=steps)
