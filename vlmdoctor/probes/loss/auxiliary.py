"""Auxiliary losses that a model gives out beside its loss, and whether the loss is made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.auxiliary import Auxiliary
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.sandbox.call import call, loss_in
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import copy_of, restoring
from vlmdoctor.subject import Subject

_NAME = re.compile(r"(^|_)(aux(iliary)?|balanc\w*|router_z)(_|$)\w*|z_loss")


def probe(subject: Subject, gather: Callable[[type], Any]) -> Auxiliary:
    """Runs the model once and follows the loss back to them; no parameter gets a gradient."""

    passed(gather, loss=True)
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    model, outputs = innermost(subject.model), []
    with restoring(subject), torch.enable_grad():
        handle = model.register_forward_hook(lambda module, given, output: outputs.append(output))
        batch = copy_of(subject.batch)
        try:
            made = call(model, batch) if subject.loss_fn is None else subject.loss_fn(model, batch)
        finally:
            handle.remove()
        loss = loss_in(made)
        if loss is None or not loss.requires_grad or len(outputs) != 1 or not isinstance(outputs[0], Mapping):
            raise Unavailable("the model gives no loss with a graph beside named outputs")
        found = {name: value for name, value in outputs[0].items() if _is_auxiliary(name, value)}
        if not found:
            raise Unavailable("the model gives out no auxiliary loss")
        try:
            reached = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
        except RuntimeError as error:  # such as reentrant checkpointing, which wants backward()
            raise Unavailable("the loss can't be followed back to a part of its graph") from error
    missing = tuple(name for name, gradient in zip(found, reached, strict=True) if gradient is None)
    values = tuple((name, float(value.detach())) for name, value in found.items())
    shares = tuple(
        (name, float(value.detach()) * float(gradient))
        for (name, value), gradient in zip(found.items(), reached, strict=True)
        if gradient is not None
    )
    return Auxiliary(
        values=values,
        left_out=missing,
        shares=shares,
        loss=float(loss.detach()),
        added_outside=subject.loss_fn is not None,
    )


def _is_auxiliary(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and bool(_NAME.search(name))
        and getattr(value, "requires_grad", False)
        and value.numel() == 1
    )
