"""Weights that are all zero and let no gradient through, and what learns once they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.zero_weights import ZeroWeights
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.sandbox.call import run
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import copy_of, restoring
from vlmdoctor.subject import Subject

DEVIATION = 0.02  # of the numbers that are put in their place for one pass
MOST_TRIED = 32  # zeros that are tried one by one


def probe(subject: Subject, gather: Callable[[type], Any]) -> ZeroWeights:
    """Runs forward and backward once with the zeros replaced, if there are any, and puts them back."""

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
    with restoring(subject), torch.enable_grad():
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
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * DEVIATION
    parameter.data.copy_(noise.to(parameter.device, parameter.dtype))


def _woken(subject: Subject, still: dict[str, Any]) -> tuple[str, ...]:
    for p in still.values():
        p.grad = None
    loss, _ = run(subject.model, copy_of(subject.batch), subject.loss_fn)
    if loss is None:
        return ()
    loss.backward()
    return tuple(name for name, p in still.items() if p.grad is not None and bool(p.grad.any()))
