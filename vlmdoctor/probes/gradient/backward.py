"""One forward and backward pass on the user's batch: which parameters a gradient reaches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward, Gradient
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.probes.batch.fields import standard
from vlmdoctor.probes.failure.traceback import failure_of
from vlmdoctor.probes.forward import passed
from vlmdoctor.sandbox.call import run
from vlmdoctor.sandbox.restore import copy_of, restoring
from vlmdoctor.subject import Subject
from vlmdoctor.watching.batch import count_images


def probe(subject: Subject, gather: Callable[[type], Any]) -> Backward:
    """Runs forward and backward once, in the model's own mode, and leaves it bit for bit as it was."""

    passed(gather, loss=True)
    parameters = list(subject.model.named_parameters())
    failure = None
    gradients: list[Gradient] = []
    with restoring(subject), torch.enable_grad():
        loss, _ = run(subject.model, copy_of(subject.batch), subject.loss_fn)
        if loss is None:
            raise Unavailable("the model gave a loss once and then none")
        value = float(loss.detach())
        try:
            loss.backward()
        except Exception as error:
            failure = failure_of(error, subject.model)
        else:
            gradients = [_gradient(name, p) for name, p in parameters if p.requires_grad]
        del loss
        silent = {g.name for g in gradients if g.zero}
        if hooked := {n: p for n, p in parameters if p._backward_hooks and canonical_name(n) in silent}:
            alive = _without_hooks(subject, hooked)
            gradients = [dataclasses.replace(g, zeroed=g.name in alive) for g in gradients]
    return Backward(
        loss=value,
        gradients=tuple(gradients),
        trainable=sum(parameter.requires_grad for _, parameter in parameters),
        parameters=len(parameters),
        failure=failure,
        images=count_images((standard(subject.model, subject.batch, subject.loss_fn),), {}),
    )


def _without_hooks(subject: Subject, parameters: dict[str, Any]) -> set[str]:
    """The names of those whose gradient is not zero where their hooks do not run; use inside `restoring`."""
    # Autograd holds the dictionaries too, so that emptying them is what silences the hooks.
    kept = [(p._backward_hooks, p._backward_hooks.copy()) for p in parameters.values()]
    try:
        for parameter, (hooks, _) in zip(parameters.values(), kept, strict=True):
            parameter.grad = None
            hooks.clear()
        loss, _ = run(subject.model, copy_of(subject.batch), subject.loss_fn)
        if loss is None:
            return set()
        loss.backward()
    finally:
        for hooks, registered in kept:
            hooks.update(registered)
    return {
        canonical_name(name) for name, p in parameters.items() if p.grad is not None and bool(p.grad.any())
    }


def _gradient(raw_name: str, parameter: object) -> Gradient:
    name = canonical_name(raw_name)
    gradient = parameter.grad  # type: ignore[attr-defined]
    if gradient is None:
        return Gradient(name=name, role=role_of(name), present=False)
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    finite = bool(gradient.isfinite().all())
    norm = float(gradient.detach().float().norm()) if finite else None
    return Gradient(
        name=name,
        role=role_of(name),
        present=True,
        zero=not bool(gradient.any()),
        finite=finite,
        norm=norm,
    )
