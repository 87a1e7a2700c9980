"""Whether the weights that a forward pass uses are those that training moves.

One pass is run; its graph is followed from the loss to the leaves, and the weights are looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.weights_in_use import Stranger, WeightsInUse
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.forward import passed
from vlmdoctor.sandbox.call import run
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import copy_of, restoring, same_random_states
from vlmdoctor.sandbox.unregistered import unregistered_parameters
from vlmdoctor.subject import Subject, optimizers

SAMPLES = 4096  # values of each tensor that are compared


def probe(subject: Subject, gather: Callable[[type], Any]) -> WeightsInUse:
    """Runs the model once, and once more where something was found, and leaves it as it was."""

    passed(gather, loss=True)
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    named = dict(subject.model.named_parameters())
    registered = {id(parameter) for parameter in subject.model.parameters()}
    held = {
        id(p)
        for one in optimizers(subject.optimizer)
        for group in getattr(one, "param_groups", ())
        for p in group["params"]
    }
    with restoring(subject), torch.enable_grad():
        before = _values(named)
        leaves = _leaves(subject)
        changed = [name for name, was in before.items() if not torch.equal(was, _sample(named[name]))]
        overwritten = _replaced(subject, {name: named[name] for name in changed}) if changed else ()
        unknown = [leaf for leaf in leaves if id(leaf) not in registered]
        again = {id(leaf) for leaf in _leaves(subject)} if unknown else set()
        names = {id(p): name for name, p in unregistered_parameters(subject.model).items()} if unknown else {}
    return WeightsInUse(
        strangers=tuple(
            Stranger(
                name=names.get(id(leaf)),
                shape=tuple(leaf.shape),
                anew=id(leaf) not in again,
                in_optimizer=id(leaf) in held,
            )
            for leaf in unknown
        ),
        overwritten=tuple(canonical_name(name) for name in overwritten),
        optimizer_given=subject.optimizer is not None,
    )


def _leaves(subject: Subject) -> list[torch.Tensor]:
    """The parameters at the ends of the loss's graph."""

    with same_random_states():
        loss, _ = run(subject.model, copy_of(subject.batch), subject.loss_fn)
    found: dict[int, torch.Tensor] = {}
    seen: set[Any] = set()
    ahead = [] if loss is None or loss.grad_fn is None else [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        # An activation that was told to require gradients is a leaf too, and no parameter.
        if isinstance(variable, torch.nn.Parameter):
            found[id(variable)] = variable
        ahead += [following for following, _ in node.next_functions if following is not None]
    return list(found.values())


def _values(named: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {
        name: _sample(p)
        for name, p in named.items()
        if p.requires_grad and not p.is_meta and p.layout is torch.strided and p.is_floating_point()
    }


def _sample(parameter: torch.Tensor) -> torch.Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLES)].clone()


def _replaced(subject: Subject, changed: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    """Those of `changed` that have the same values after a pass whatever they had before it.

    The pass may clip or normalise weights as well, which keeps what training moved.
    """
    # Kept here, since of a large model `restoring` does not keep the weights.
    kept = {name: parameter.detach().clone() for name, parameter in changed.items()}
    try:
        for parameter in changed.values():
            parameter.data.mul_(-0.5).add_(0.01)
        _leaves(subject)
        return tuple(name for name, was in kept.items() if torch.equal(_sample(was), _sample(changed[name])))
    finally:
        for name, was in kept.items():
            changed[name].data.copy_(was)
