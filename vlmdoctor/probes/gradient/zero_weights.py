"""Weights that are all zero and let no gradient through, and what learns once they are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "backward"
DEVIATION = 0.02  # of the numbers that are put in their place for one pass
MOST_TRIED = 32  # zeros that are tried one by one


@dataclass(frozen=True)
class ZeroWeights:
    """What was found and tried.

    Attributes:
        zeros: (name, trainable) of tensors that are all zero, and that are frozen or get a gradient of
            exactly zero themselves: one layer that starts at zero gets one that is not.
        woken: Names of trainable parameters whose gradient was exactly zero, and is not with small random
            numbers in place of those zeros.
        still: How many trainable parameters have a gradient of exactly zero.
        reached: How many have one that is not zero.
    """

    zeros: tuple[tuple[str, bool], ...] = ()
    woken: tuple[str, ...] = ()
    still: int = 0
    reached: int = 0


def probe(subject: Subject, gather: Callable[[type], Any]) -> ZeroWeights:
    """Runs forward and backward once with the zeros replaced, if there are any, and puts them back."""
    import torch

    from vlmdoctor.subject import canonical_name
    from vlmdoctor.unchanged import unchanged
    from vlmdoctor.watching.nonfinite import communicates

    backward: Backward = gather(Backward)
    if backward.failure is not None:
        raise Unavailable("the backward pass raises")
    still = {g.name for g in backward.gradients if g.zero}
    reached = sum(g.present and not g.zero for g in backward.gradients)
    if not still:
        return ZeroWeights(reached=reached)
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    named = {canonical_name(name): p for name, p in subject.model.named_parameters()}
    zeros = {
        name: p
        for name, p in named.items()
        if (not p.requires_grad or name in still)
        and p.is_floating_point()
        and not name.endswith("bias")
        and not p.is_meta
        and not p.any()
    }
    if not zeros:
        return ZeroWeights(still=len(still), reached=reached)
    asleep = {name: named[name] for name in still}
    with unchanged(subject), torch.enable_grad():
        kept = {name: p.detach().clone() for name, p in zeros.items()}
        try:
            for p in zeros.values():
                _fill(p)
            woken = _woken(subject, asleep)
            # Those that make no difference are put back, one by one.
            for name in list(zeros) if woken and len(zeros) <= MOST_TRIED else ():
                zeros[name].data.copy_(kept[name])
                if len(zeros) > 1 and set(woken) <= {*_woken(subject, asleep)}:
                    del zeros[name]
                else:
                    _fill(zeros[name])
        finally:
            for name, was in kept.items():
                named[name].data.copy_(was)
    return ZeroWeights(
        zeros=tuple((name, p.requires_grad) for name, p in zeros.items()),
        woken=woken,
        still=len(still),
        reached=reached,
    )


def _fill(parameter: Any) -> None:
    import torch

    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * DEVIATION
    parameter.data.copy_(noise.to(parameter.device, parameter.dtype))


def _woken(subject: Subject, still: dict[str, Any]) -> tuple[str, ...]:
    from vlmdoctor.invoke import run
    from vlmdoctor.unchanged import copy_of

    for p in still.values():
        p.grad = None
    loss, _ = run(subject.model, copy_of(subject.batch), subject.loss_fn)
    if loss is None:
        return ()
    loss.backward()
    return tuple(name for name, p in still.items() if p.grad is not None and bool(p.grad.any()))
