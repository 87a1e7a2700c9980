"""How gradient norms change from layer to layer of one stack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps


@dataclass(frozen=True)
class Profile:
    """The layers of one stack with a gradient, from the input to the output.

    Attributes:
        stack: Such as `model.language_model.layers`.
        depths: The layers' numbers.
        norms: Median gradient norm of each, over the sampled steps at which it had one.
        samples: The fewest samples that one of the medians comes from.
    """

    stack: str
    depths: tuple[int, ...]
    norms: tuple[float, ...]
    samples: int

    @property
    def growth(self) -> float:
        """The norm nearest the output over the norm nearest the input."""
        return self.norms[-1] / self.norms[0]

    @property
    def correlation(self) -> float:
        """How well the logarithm of the norm follows a straight line over depth, from -1 to 1."""
        logs = [math.log(norm) for norm in self.norms]
        x_mean, y_mean = sum(self.depths) / len(self.depths), sum(logs) / len(logs)
        xy = sum((x - x_mean) * (y - y_mean) for x, y in zip(self.depths, logs, strict=True))
        xx = sum((x - x_mean) ** 2 for x in self.depths)
        yy = sum((y - y_mean) ** 2 for y in logs)
        return xy / math.sqrt(xx * yy) if xx * yy > 0 else 0.0


def profiles(parameters: Parameters, steps: Steps) -> list[Profile]:
    """One profile for each stack of repeated blocks, over blocks whose norms are positive and finite."""
    stacks: dict[str, dict[int, str]] = {}
    for parameter in parameters.parameters:
        if parameter.layer and parameter.depth is not None:
            stacks.setdefault(parameter.layer.rpartition(".")[0], {})[parameter.depth] = parameter.layer
    found = []
    for stack, layers in stacks.items():
        values = {}
        for depth, layer in sorted(layers.items()):
            norms = [s.layer_grad_norms[layer] for s in steps.steps if layer in s.layer_grad_norms]
            norms = [norm for norm in norms if norm is not None and math.isfinite(norm) and norm > 0]
            if norms:
                values[depth] = norms
        if len(values) >= 2:
            found.append(
                Profile(
                    stack,
                    tuple(values),
                    tuple(median(norms) for norms in values.values()),
                    min(map(len, values.values())),
                )
            )
    return found
