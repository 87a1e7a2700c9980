"""What a watched model is, as evidence, and the rules that a watched run is judged by."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from torch import nn

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.probes.model import parameters
from vlmdoctor.rulebook import Rule, answerable
from vlmdoctor.subject import Subject
from vlmdoctor.watching.optimizers import OptimizerTracker


def parameters_of(model: nn.Module, held: OptimizerTracker, trainable: Iterable[str] | None) -> Parameters:
    """The model's parameters; each with the highest learning rate that it has had so far."""
    subject = Subject(model, optimizer=held.described(model.parameters()), trainable=trainable)
    listed = parameters.probe(subject, lambda _: None)
    rates = held.highest_rates()
    entries = [
        dataclasses.replace(entry, lr=rates.get(id(tensor), entry.lr))
        for entry, tensor in zip(listed.parameters, model.parameters(), strict=True)
    ]
    return dataclasses.replace(listed, parameters=tuple(entries))


@functools.cache
def rules_on_steps() -> tuple[Rule, ...]:
    """The rules that need nothing but `Parameters` and `Steps`."""
    return tuple(answerable({Parameters, Steps}))
