"""The learning rate as a pure function of the step, so that there is no state to save or to lose."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, steps: int, warmup: int, min_ratio: float) -> float:
    """The share of the peak learning rate at optimizer step `step`, counted from 0.

    Rises linearly over `warmup` steps, then falls along half a cosine to `min_ratio` at step `steps - 1`.

        1 |   .-'''-.
          |  /       '-.
          | /           '-._      min_ratio
          |/________________'----
           warmup           steps
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
