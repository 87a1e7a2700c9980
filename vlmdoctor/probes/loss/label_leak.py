"""Changing one label, and reading the scores that the loss compares with it off the call of the loss."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.label_leak import LabelLeak
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.passes import PassRunner
from vlmdoctor.probes.loss.calls import LossCall, watched_losses
from vlmdoctor.sandbox.call import run, seed
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import copy_of, restoring
from vlmdoctor.subject import Subject

TRIED = 3
SLOW = 15.0  # seconds for one pass


def probe(subject: Subject, gather: Callable[[type], Any]) -> LabelLeak:
    """Runs the model a few times with one label changed, and leaves it as it was."""
    passed(gather, loss=True, finite=True)
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    with restoring(subject):
        return measure(subject)


def measure(subject: Subject) -> LabelLeak:
    """Use inside `restoring`."""
    trials = PassRunner(subject)
    inputs = trials.inputs
    if inputs.labels is None:
        raise Unavailable("the batch holds no labels")
    labels = inputs[inputs.labels]
    started = time.perf_counter()
    own = _call(subject, trials, None)
    if (took := time.perf_counter() - started) > SLOW:
        raise Unavailable(f"one forward pass takes {took:.0f} s here")
    known = (labels != inputs.ignored) & (labels >= 0)
    known[:, 0] = False  # what is never foretold, where the loss shifts
    places = known.nonzero()
    if len(places) < TRIED:
        raise Unavailable("too few labels are not masked")
    values = labels[known].unique()
    if len(values) < 2:
        raise Unavailable("all labels are the same")
    found = []
    for place in places[:: max(1, len(places) // TRIED)][:TRIED].tolist():
        other = values[values != labels[tuple(place)]][0]
        changed = {inputs.labels: _with(labels, place, other)}
        fed = inputs.fields.get("decoder_input_ids")
        if (
            isinstance(fed, torch.Tensor)
            and fed.shape == labels.shape
            and fed[tuple(place)] == labels[tuple(place)]
        ):
            changed["decoder_input_ids"] = _with(fed, place, other)
        try:
            seen = _call(subject, trials, inputs.with_(**changed))
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"with another label it raises {type(error).__name__}") from error
        if seen.targets.shape != own.targets.shape:
            raise Unavailable("the loss is of another shape with another label")
        where = (seen.targets != own.targets).nonzero().flatten()
        if len(where) != 1:
            raise Unavailable("the label was not found again in what the loss is given")
        found.append(float((seen.scores[where[0]] - own.scores[where[0]]).abs().max()))
    scale = float(own.scores[own.targets != own.ignored].abs().max())
    return LabelLeak(tried=len(found), moved=min(found), scale=scale, row=place[0], position=place[1])


def _with(tokens: torch.Tensor, place: list[int], token: torch.Tensor) -> torch.Tensor:
    changed = tokens.clone()
    changed[tuple(place)] = token
    return changed


def _call(subject: Subject, trials: PassRunner, batch: object) -> LossCall:
    """The first call of a token loss."""
    given = copy_of(subject.batch if batch is None else batch)
    seed(0)
    with torch.no_grad(), warnings.catch_warnings(), watched_losses() as calls:
        warnings.simplefilter("ignore")
        run(trials.model, given, subject.loss_fn)
    if not calls or not bool(calls[0].scores.isfinite().all()):
        raise Unavailable("the loss does not go through torch's cross_entropy, or its scores are not finite")
    return calls[0]
