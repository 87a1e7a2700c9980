"""A few dozen steps of AdamW on a copy, at several learning rates: can this batch be learned at all?"""

from __future__ import annotations

import math
import re
import time
import warnings

import torch

from vlmdoctor.bench import Bench, bench_for
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.overfit import LEARNED, RATES, SECONDS, STEPS, Try
from vlmdoctor.subject import Subject

DIVERGED = 3.0  # times the first loss
_NOISY = re.compile(r"dropout|batchnorm|droppath|stochasticdepth", re.IGNORECASE)


def our_tries(subject: Subject) -> tuple[Try, ...]:
    """The tries until one learns; use inside `unchanged`.

    Raises:
        Unavailable: The model can't be copied, or the time was too short for it.
    """
    started = time.perf_counter()
    made: list[Try] = []
    for rate in RATES:
        if made and time.perf_counter() - started > SECONDS:
            break
        made.append(steps_of(bench_for(subject), rate, started))
        if made[-1].learned:
            break
    if not any(attempt.learned for attempt in made) and time.perf_counter() - started > SECONDS:
        raise Unavailable(f"{SECONDS:.0f} s were too short here to learn one batch by heart")
    return tuple(made)


def steps_of(bench: Bench, rate: float, started: float, *, steps: int = STEPS, until: float = LEARNED) -> Try:
    """Steps of AdamW on a copy, until the loss is below `until` times the first, or the time is up."""
    model = bench.model.train()
    for module in model.modules():
        if _NOISY.search(type(module).__name__):
            module.eval()  # what is asked is whether the batch can be learned, not how fast with dropout
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
    losses: list[float] = []
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(steps + 1):
            optimizer.zero_grad(set_to_none=True)
            loss = bench.loss()
            losses.append(float(loss.detach()))
            done = losses[-1] < until * losses[0] or losses[-1] > DIVERGED * losses[0]
            late = time.perf_counter() - started > SECONDS
            if step == steps or done or late or not math.isfinite(losses[-1]) or not loss.requires_grad:
                break
            loss.backward()
            optimizer.step()
    return Try(rate, tuple(losses))
