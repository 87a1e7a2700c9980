"""Measuring how a hand-written model is put together: what moves with the images, what with the text.

Three passes are compared call by call: the batch as it is, with other images, and with other outputs of the
token embedding. A module whose output moves with the images alone is on their path to the decoder; one that
moves with both is behind the place where they meet.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.wiring import FirstLook, Wiring
from vlmdoctor.probes.influence.images import noise_like
from vlmdoctor.probes.influence.passes import PassRunner, innermost
from vlmdoctor.probes.loss.left_out import left_out
from vlmdoctor.probes.model.landing import landing, padding_of
from vlmdoctor.probes.model.wiring_calls import Call, Calls, are_apart, calls_of
from vlmdoctor.probes.model.wiring_roles import roles_by_flow
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.subject import Subject

SLOW = 5.0  # seconds for one pass: about six are made


def probe(subject: Subject, gather: Gatherer) -> Wiring:
    """Runs a model without a configuration about six times, and leaves it as it was."""
    if not isinstance(subject.model, nn.Module):
        raise Unavailable("no built model was given")
    model = innermost(subject.model)
    if hasattr(getattr(model, "config", None), "model_type"):
        raise Unavailable("the model's configuration names its parts")
    if subject.batch is None:
        raise Unavailable("no batch was given")
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    with restoring(subject), torch.no_grad():
        try:
            wiring = measure(subject)
            return dataclasses.replace(wiring, left_out=_left_out(subject, wiring))
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"the forward pass raises {type(error).__name__}") from error


def measure(subject: Subject) -> Wiring:
    """Use inside `restoring`."""
    trials = PassRunner(subject)
    inputs = trials.inputs
    if inputs.ids is None or inputs.reads_labels:
        raise Unavailable("no token ids were found in the batch")
    ids = inputs[inputs.ids]
    before = calls_of(trials, ids)
    if trials.seconds > SLOW:
        raise Unavailable(f"a forward pass takes {trials.seconds:.0f} s here")
    embedding = before.embedding
    wiring = Wiring(
        embedding=embedding,
        embedding_rows=None if embedding is None else _rows(trials.model, before.raw),
        head_rows=before.logits,
        padding_id=padding_of(ids, None if inputs.mask is None else inputs.valid),
        ignored=trials.ignored,
    )
    return wiring if embedding is None or not inputs.images else _with_images(wiring, trials, before)


def _with_images(wiring: Wiring, trials: PassRunner, before: Calls) -> Wiring:
    inputs = trials.inputs
    ids = inputs[inputs.ids]
    other = inputs.with_(**{name: noise_like(inputs[name]) for name in inputs.images})
    seen = calls_of(trials, ids, other)
    with other_words(trials.model.get_submodule(before.raw)):
        read = calls_of(trials, ids)
    if not (before.names == seen.names == read.names):
        return wiring
    apart = partial(are_apart, epsilon=trials.epsilon)
    by_images = [apart(one.output, two.output) for one, two in zip(before.calls, seen.calls, strict=True)]
    by_text = [apart(one.output, two.output) for one, two in zip(before.calls, read.calls, strict=True)]
    moved = {
        name: (
            any(m for n, m in zip(before.names, by_images, strict=True) if n == name),
            any(m for n, m in zip(before.names, by_text, strict=True) if n == name),
        )
        for name in dict.fromkeys(before.names)
    }
    first = next(
        (
            c
            for c, m in zip(before.calls, by_images, strict=True)
            if m and c.has_weights and c.range is not None
        ),
        None,
    )
    place = next(
        (
            i
            for i, call in enumerate(before.calls)
            if call.is_hidden
            and apart(call.given, seen.calls[i].given)
            and apart(call.given, read.calls[i].given)
        ),
        None,
    )
    token, shares = (None, ()) if place is None else landing(trials, place, other)
    pixels = [shape for name in inputs.images if (shape := tuple(inputs[name].shape))]
    return dataclasses.replace(
        wiring,
        roles=roles_by_flow(trials.model, before.calls, moved, pixels, before.head),
        image_token_id=token,
        images_of_rows=shares,
        first_look=None if first is None or _is_normalised(first, before.calls) else _look(first),
    )


def _left_out(subject: Subject, wiring: Wiring) -> frozenset[int]:
    """Padding, or the placeholder of images, where the labels hold it and the loss does not count it."""
    inputs = PassRunner(subject).inputs
    if inputs.labels is None:
        return frozenset()
    labels = inputs[inputs.labels]
    special = {
        i for i in (wiring.padding_id, wiring.image_token_id) if i is not None and bool((labels == i).any())
    }
    return left_out(subject, inputs[inputs.ids], special) if special else frozenset()


@contextlib.contextmanager
def other_words(embedding: nn.Module) -> Iterator[None]:
    """Inside, the embedding gives out other vectors, of the same size."""

    def hook(module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(7)).to(output)
        return output + drawn * output.float().std().clamp(min=1e-3).to(output.dtype)

    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _is_normalised(first: Call, calls: Sequence[Call]) -> bool:
    """Whether a norm comes next, which takes out whatever scale the pixels have."""
    after = [call for call in calls if call is not first and call.given == first.output]
    return any("norm" in call.kind.lower() for call in after)


def _look(call: Call) -> FirstLook | None:
    if call.range is None:
        return None
    low, high, size = call.range
    return FirstLook(module=call.name, kind=call.kind, low=low, high=high, size=size)


def _rows(model: nn.Module, embedding: str) -> int:
    """How many tokens the embedding of this name has."""
    return int(model.get_parameter(f"{embedding}.weight").shape[0])
