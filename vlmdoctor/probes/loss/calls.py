"""The token losses of a forward pass, seen where torch computes them, whoever calls for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vlmdoctor.knowledge.labels import IGNORE_INDEX

FUNCTIONS = {
    functional.cross_entropy: "cross_entropy",
    functional.nll_loss: "nll_loss",
    functional.binary_cross_entropy_with_logits: "binary_cross_entropy_with_logits",
}
_NAMES = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction")


@dataclass
class LossCall:
    """One call of `cross_entropy` or `nll_loss` with whole numbers as targets.

    Attributes:
        scores: What it was given for each target, [N, V].
        targets: [N].
        rows: How many rows the targets had before they were made flat; None where they came flat.
        ignored: The target that it leaves out.
        summed: Whether it adds the targets' losses up.
    """

    scores: torch.Tensor
    targets: torch.Tensor
    rows: int | None
    ignored: int
    summed: bool

    @property
    def counted(self) -> int:
        """How many targets it does not leave out."""
        return int((self.targets != self.ignored).sum())


class _Watcher(TorchFunctionMode):
    def __init__(self, heard: Callable[..., None] | None) -> None:
        super().__init__()
        self.calls: list[LossCall] = []
        self._heard = heard

    def __torch_function__(self, function: Any, kinds: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function not in FUNCTIONS:
            return function(*arguments, **keywords)
        if function in (functional.cross_entropy, functional.nll_loss):
            call = _call(dict(zip(_NAMES, arguments, strict=False)) | keywords)
            if call is not None:
                self.calls.append(call)
        result = function(*arguments, **keywords)
        if self._heard is not None:
            self._heard(function, arguments, keywords, result)
        return result


@contextmanager
def watched_losses(heard: Callable[..., None] | None = None) -> Iterator[list[LossCall]]:
    """Inside, calls are noted in the list, with the very tensors that they were given.

    Args:
        heard: Called with (function, args, kwargs, result) of each of `FUNCTIONS`.
    """
    watcher = _Watcher(heard)
    with watcher:
        yield watcher.calls


def token_losses(calls: Sequence[LossCall], ids: torch.Tensor | None) -> list[LossCall]:
    """Those over a vocabulary that has the ids, of one width: a contrastive loss is over a few samples."""
    if ids is None or not ids.numel() or ids.is_meta:
        return []
    least = int(ids.max())
    wide = [call for call in calls if call.scores.shape[-1] > least]
    return [call for call in wide if call.scores.shape[-1] == wide[0].scores.shape[-1]]


def _call(given: dict[str, Any]) -> LossCall | None:
    scores, targets = given.get("input"), given.get("target")
    if not isinstance(scores, torch.Tensor) or not isinstance(targets, torch.Tensor):
        return None
    if targets.is_floating_point() or targets.is_meta or scores.ndim != targets.ndim + 1 or not targets.ndim:
        return None
    rows = int(targets.shape[0]) if targets.ndim == 2 else None
    if scores.ndim > 2:
        scores = scores.movedim(1, -1)
    ignored = given.get("ignore_index", IGNORE_INDEX)
    summed = given.get("reduction", "mean") == "sum"
    return LossCall(scores.detach().flatten(0, -2), targets.detach().flatten(), rows, int(ignored), summed)
