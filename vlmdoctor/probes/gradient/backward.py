"""One forward and backward pass on the user's batch: which parameters a gradient reaches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.failure import Failure
from vlmdoctor.evidence.forward import passed

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "backward"


@dataclass(frozen=True)
class Gradient:
    """The gradient of one parameter tensor that has requires_grad.

    Attributes:
        name: Canonical name, as in `Parameter.name`.
        role: `vision`, `projector`, `language`, `head` or `other`.
        present: Whether backward made one.
        zero: Whether it is exactly zero; None without one.
        finite: Whether it is free of NaN and infinity; None without one.
        norm: Its norm in float32; None without one, and where it is not finite.
        zeroed: Whether it is exactly zero because of the parameter's hooks: without them it is not.
    """

    name: str
    role: str
    present: bool
    zero: bool | None = None
    finite: bool | None = None
    norm: float | None = None
    zeroed: bool = False


@dataclass(frozen=True)
class Backward:
    """What one backward pass gave.

    Attributes:
        loss: The loss that it started from.
        gradients: One entry for each parameter that has requires_grad.
        trainable: How many of the model's parameter tensors have requires_grad.
        parameters: How many parameter tensors there are.
        failure: What backward raised.
        images: How many images the batch holds; None where that can't be told.
    """

    loss: float
    gradients: tuple[Gradient, ...]
    trainable: int
    parameters: int
    failure: Failure | None = None
    images: int | None = None


def probe(subject: Subject, gather: Callable[[type], Any]) -> Backward:
    """Runs forward and backward once, in the model's own mode, and leaves it bit for bit as it was."""
    import torch

    from vlmdoctor.evidence.inputs import standard
    from vlmdoctor.evidence.raised import failure_of
    from vlmdoctor.invoke import run
    from vlmdoctor.subject import canonical_name
    from vlmdoctor.unchanged import copy_of, unchanged
    from vlmdoctor.watching.batch import count_images

    passed(gather, loss=True)
    parameters = list(subject.model.named_parameters())
    failure = None
    gradients: list[Gradient] = []
    with unchanged(subject), torch.enable_grad():
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
    """The names of those whose gradient is not zero where their hooks do not run; use inside `unchanged`."""
    from vlmdoctor.invoke import run
    from vlmdoctor.subject import canonical_name
    from vlmdoctor.unchanged import copy_of

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
    from vlmdoctor.subject import canonical_name, role_of

    name = canonical_name(raw_name)
    gradient = parameter.grad  # type: ignore[attr-defined]
    if gradient is None:
        return Gradient(name, role_of(name), present=False)
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    finite = bool(gradient.isfinite().all())
    norm = float(gradient.detach().float().norm()) if finite else None
    return Gradient(
        name,
        role_of(name),
        True,
        zero=not bool(gradient.any()),
        finite=finite,
        norm=norm,
    )
