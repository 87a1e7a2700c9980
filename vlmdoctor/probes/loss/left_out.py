"""Which tokens the user's loss leaves out, by whatever means: whether their scores get a gradient.

An `ignore_index` can be read; a mask that is multiplied with the losses of the tokens can't. So the scores
that torch's cross-entropy is given become leaves of a graph of their own, and the loss is differentiated to
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vlmdoctor.sandbox.call import run, seed
from vlmdoctor.sandbox.copies import copy_of
from vlmdoctor.subject import Subject

_LOSSES = (functional.cross_entropy, functional.nll_loss)


class _Leaves(TorchFunctionMode):
    """From the first loss of tokens on a graph is built, and only from there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, function: Any, kinds: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = dict(keywords or {})
        if function not in _LOSSES:
            return function(*arguments, **keywords)
        given = dict(zip(("input", "target"), arguments, strict=False)) | keywords
        scores, targets = given.get("input"), given.get("target")
        if not isinstance(scores, torch.Tensor) or not isinstance(targets, torch.Tensor):
            return function(*arguments, **keywords)
        if targets.is_floating_point() or targets.is_meta or scores.ndim != targets.ndim + 1:
            return function(*arguments, **keywords)
        leaf = scores.detach().requires_grad_()
        self.seen.append((leaf, targets.detach()))
        torch.set_grad_enabled(True)  # until the block of `left_out` ends
        if arguments:
            return function(leaf, *arguments[1:], **keywords)
        return function(**(keywords | {"input": leaf}))


def left_out(subject: Subject, ids: torch.Tensor, tokens: Iterable[int]) -> frozenset[int]:
    """Those of the tokens whose own loss counts nowhere; use inside `restoring`.

    Empty where torch's cross-entropy over a vocabulary that has the `ids` is not called, or counts nothing.
    """
    with torch.no_grad(), _Leaves() as leaves:
        seed(0)
        loss, _ = run(subject.model, copy_of(subject.batch), subject.loss_fn)
    # A contrastive loss is over a few samples.
    seen = [(leaf, targets) for leaf, targets in leaves.seen if leaf.shape[_classes(leaf)] > int(ids.max())]
    if loss is None or not seen or not loss.requires_grad:
        return frozenset()
    slopes = torch.autograd.grad(loss, [leaf for leaf, _ in seen], allow_unused=True)
    counted: set[int] = set()
    for (leaf, targets), slope in zip(seen, slopes, strict=True):
        if slope is not None:
            counted.update(targets[(slope != 0).any(dim=_classes(leaf))].unique().tolist())
    return frozenset(tokens) - counted if counted else frozenset()


def _classes(scores: torch.Tensor) -> int:
    """The dimension of the classes: the second, after the samples, or the only one."""
    return 1 if scores.ndim > 1 else 0
