"""Finding questions of a batch that only its images answer, and learning them with and without the images."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.image_needed import STEPS, ImageNeeded
from vlmdoctor.evidence.overfit import FALLS
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.probes.batch.rows import fields_of_parts
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.probes.training.overfit import RATES, SECONDS, steps_of
from vlmdoctor.proof.workbench import workbench_for
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.subject import Subject

MOST_ROWS = 64
SHARE = 0.1  # of the supervised tokens: below it the loss says too little about the others
BELOW = 0.9  # of the loss that the text alone allows: what is below it looks at the images
_SHADE = 0.25  # of a blank image: some models take one of zeros for none


def probe(subject: Subject, gather: Callable[[type], Any]) -> ImageNeeded:
    """Looks for questions that only the images answer; only if there are any it learns them on copies."""
    forward = passed(gather, loss=True, finite=True)
    backward: Backward = gather(Backward)
    if not forward.loss or forward.loss < 0:
        raise Unavailable("there is no positive loss to bring down")
    if backward.failure is not None or not any(
        g.present and g.finite and not g.zero for g in backward.gradients
    ):
        raise Unavailable("no parameter gets a gradient")
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    with restoring(subject):
        return measure(subject, forward.loss)


def measure(subject: Subject, loss: float) -> ImageNeeded:
    """The steps, from a first loss; use inside `restoring`."""
    inputs = Inputs(innermost(subject.model), subject.batch, apart=subject.loss_fn is not None)
    if inputs.ids is None or inputs.labels is None or not inputs.images:
        raise Unavailable("the batch lacks token ids, labels or images")
    ambiguous, supervised, floor = _ambiguous(inputs, subject)
    if ambiguous < SHARE * supervised:
        raise Unavailable("no rows of the batch ask the same of different images and answer differently")
    for _ in range(2):  # the first may load half of torch
        started = time.perf_counter()
        steps_of(workbench_for(subject), RATES[1], started, steps=1)
    if (taken := time.perf_counter() - started) * 2 * STEPS > SECONDS:
        raise Unavailable(f"a step takes {taken:.1f} s here, too long for {2 * STEPS} of them")
    until = BELOW * floor / loss
    for rate in RATES[:2]:
        shown = steps_of(workbench_for(subject), rate, started, steps=STEPS, until=until)
        if shown.best < until * loss:
            return ImageNeeded(ambiguous=ambiguous, supervised=supervised, shown=shown)
        if shown.best < FALLS * shown.losses[0]:
            break
    bench = workbench_for(subject)
    bench.batch = inputs.with_(**{name: _blank(inputs[name]) for name in inputs.images})
    blank = steps_of(bench, rate, started, steps=STEPS, until=until)
    return ImageNeeded(ambiguous=ambiguous, supervised=supervised, shown=shown, blank=blank)


def _ambiguous(inputs: Inputs, subject: Subject) -> tuple[int, int, float]:
    """(tokens that the text in front of them leaves open and the images don't, supervised tokens, a loss).

    The loss is the lowest that can be had from the text alone, as a mean over the supervised tokens.
    """
    predicting = inputs.predicting()
    if predicting is None:
        raise Unavailable("the labels are not the next tokens")
    rows, parts = fields_of_parts(inputs, innermost(subject.model), subject, most=MOST_ROWS)
    if len(parts) != rows:
        raise Unavailable("the batch has one row, or too many")
    images = [_bytes_of(inputs.images_of(part)) for part in parts]
    following: dict[tuple[int, ...], list[tuple[int, bytes]]] = defaultdict(list)
    ids, valid = inputs[inputs.ids].tolist(), inputs.valid.tolist()
    for row, column in predicting.nonzero().tolist():
        text = tuple(i for i, real in zip(ids[row][: column + 1], valid[row], strict=False) if real)
        following[text].append((ids[row][column + 1], images[row]))
    supervised, open_, floor = int(predicting.sum()), 0, 0.0
    for known in following.values():
        tokens, told = Counter(token for token, _ in known), set(known)
        if len(tokens) > 1 and len(told) == len({image for _, image in told}):
            open_ += len(known)
            floor -= sum(n * math.log(n / len(known)) for n in tokens.values()) / supervised
    return open_, supervised, floor


def _bytes_of(images: Iterable[Any]) -> bytes:
    return b"".join(one.detach().float().cpu().numpy().tobytes() for one in images if one is not None)


def _blank(images: torch.Tensor) -> torch.Tensor:
    shade = _SHADE if images.is_floating_point() else 64
    # What is wholly empty is padding, and stays it.
    empty = ~images.flatten(1).any(dim=1) if images.ndim > 1 else images == 0
    blank = torch.full_like(images, shade)
    blank[empty] = 0
    return blank
