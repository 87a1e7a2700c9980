"""A few dozen steps of AdamW on a copy, at several learning rates: can this batch be learned at all?"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.overfit import LEARNED, Overfit, Try, runs_away
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.proof.workbench import Workbench, workbench_for
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.subject import Subject, optimizers

RATES = (3e-3, 3e-4, 3e-2, 3e-5)  # small models take the first, large and trained ones the others
STEPS = 24
SECONDS = 30.0  # no further step is taken after so long

DIVERGED = 3.0  # times the first loss
_NOISY = re.compile(r"dropout|batchnorm|droppath|stochasticdepth", re.IGNORECASE)


def probe(subject: Subject, gather: Callable[[type], Any]) -> Overfit:
    """Reads what the trial steps gave; only where they did not learn does it take steps of its own."""
    forward: Forward = gather(Forward)
    backward: Backward = gather(Backward)
    if backward.failure is not None:
        raise Unavailable("the backward pass raises")
    if not forward.finite or not forward.loss or forward.loss < 0:
        raise Unavailable("there is no positive loss to bring down")
    if not any(g.present and g.finite and not g.zero for g in backward.gradients):
        raise Unavailable("no parameter gets a gradient")
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    given = optimizers(subject.optimizer)
    users = None
    if given:
        steps: Steps = gather(Steps)
        rate = given[0].param_groups[0].get("lr") if given[0].param_groups else None
        losses = tuple(s.loss for s in steps.steps if s.loss is not None)
        users = Try(rate=None if rate is None else float(rate), losses=losses)
    kind = type(given[0]).__name__ if given else ""
    scheduled = bool(optimizers(subject.lr_scheduler))
    if users is not None and users.falls and not runs_away(users):
        return Overfit(users=users, scheduled=scheduled, kind=kind)
    with restoring(subject):
        return Overfit(users=users, ours=our_tries(subject), scheduled=scheduled, kind=kind)


def our_tries(subject: Subject) -> tuple[Try, ...]:
    """The tries until one learns; use inside `restoring`.

    Raises:
        Unavailable: The model can't be copied, or the time was too short for it.
    """
    started = time.perf_counter()
    made: list[Try] = []
    for rate in RATES:
        if made and time.perf_counter() - started > SECONDS:
            break
        made.append(steps_of(workbench_for(subject), rate, started))
        if made[-1].learned:
            break
    if not any(attempt.learned for attempt in made) and time.perf_counter() - started > SECONDS:
        raise Unavailable(f"{SECONDS:.0f} s were too short here to learn one batch by heart")
    return tuple(made)


def steps_of(
    bench: Workbench, rate: float, started: float, *, steps: int = STEPS, until: float = LEARNED
) -> Try:
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
    return Try(rate=rate, losses=tuple(losses))
