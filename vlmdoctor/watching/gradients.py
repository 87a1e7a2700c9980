"""The norm of each gradient, taken by hooks as backward leaves it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vlmdoctor.sandbox import examining
from vlmdoctor.watching.index import Index
from vlmdoctor.watching.measure import Number, dense, norms


class Gradients:
    """The norm of each gradient at the end of backward: before anyone clips or unscales it.

    A hook on each parameter notes that its gradient arrived, which tells an absent gradient from a
    stale or zeroed one; one callback at the end of backward takes all the norms at once. Over
    accumulated micro-batches the last one counts, since gradients are running sums.
    """

    def __init__(
        self, guard: Callable[[Callable[..., Any]], Callable[..., None]], ended: Callable[[], None]
    ) -> None:
        self._ended_backward = ended
        self.norms: dict[int, Number] = {}
        self.on_host = False  # where gradients are: there each norm is read when it is taken, and only then
        self.order: list[int] = []  # as they arrived in the last backward: nearest the loss first
        self.in_backward = False
        self.residue: Tensor | None = None
        self.residue_known = False
        self._index: Index | None = None
        self._probe = 0
        self._checks = examining.anywhere()  # of which this one may be a part
        self._arrived: list[int] = []
        self._handles: list[Any] = []
        self._ended = guard(self._measure)
        self._requeue = guard(lambda: torch.autograd.Variable._execution_engine.queue_callback(self._ended))
        self._before_first = guard(self._note_residue)

    def arm(self, index: Index, probe: int | None) -> None:
        """Watches the parameters that require gradients; `probe` is one to be looked at for a gradient
        left over from the step before."""
        self._index = index
        now = index.tensors()
        for place, tensor in enumerate(now):
            if tensor is not None and tensor.requires_grad and tensor.is_leaf:
                self._handles.append(tensor.register_post_accumulate_grad_hook(_Arrival(self, place)))
        watched = now[probe] if probe is not None else None
        if probe is not None and watched is not None and watched.requires_grad:
            self._probe = probe
            self._handles.append(watched.register_hook(_BeforeFirst(self)))

    def disarm(self) -> None:
        """Removes every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        # An interruption may have come between a hook and its handle.
        for tensor in self._index.tensors() if self._index is not None else ():
            for name in ("_post_accumulate_grad_hooks", "_backward_hooks"):
                registered = getattr(tensor, name, None) or {}
                for key in [key for key, hook in registered.items() if _is_of(hook, self)]:
                    del registered[key]

    def clear(self) -> None:
        """Forgets the step's measurements."""
        self.norms = {}
        self._arrived.clear()
        self.in_backward = False
        self.residue, self.residue_known = None, False

    def measure(self, places: Iterable[int]) -> dict[int, Number]:
        """Norms of the present gradients of these parameters; those without one are left out."""
        tensors = self._index.tensors() if self._index is not None else ()
        have: list[int] = []
        gradients: list[Tensor] = []
        for place in places:
            if (tensor := tensors[place]) is not None and (values := dense(tensor.grad)) is not None:
                have.append(place)
                gradients.append(values)
        taken = norms(gradients)
        return dict(zip(have, [n.item() for n in taken] if self.on_host else taken, strict=True))

    def arrived(self, place: int) -> None:
        """The gradient of a parameter was accumulated."""
        if not self.in_backward:
            self.in_backward = True
            # Twice queued, so that it runs after what others queue meanwhile: DDP averages the
            # gradients in a callback of its own.
            torch.autograd.Variable._execution_engine.queue_callback(self._requeue)
        self._arrived.append(place)

    def before_first(self, grad: Tensor) -> None:
        """A gradient is about to be accumulated."""
        if examining.anywhere() == self._checks:
            self._before_first(grad)

    def _measure(self) -> None:
        # Checkpointed blocks run backward inside backward: each piece is measured at its own end.
        arrived = list(dict.fromkeys(self._arrived))
        self._arrived.clear()
        self.in_backward = False
        self.order = arrived
        with torch.no_grad():
            self.norms.update(self.measure(arrived))
        self._ended_backward()

    def _note_residue(self, _: Tensor) -> None:
        # Runs before the gradient is added: what is there now was left by the step before.
        if self.residue_known or self.norms:
            return
        self.residue_known = True
        probe = self._index.tensor(self._probe) if self._index is not None else None
        left = None if probe is None else dense(probe.grad)
        if left is not None:
            with torch.no_grad():
                self.residue = norms([left])[0]


class _Arrival:
    """Autograd holds hooks where the garbage collector can't see: it may not hold the watcher."""

    __slots__ = ("gradients", "place")

    def __init__(self, gradients: Gradients, place: int) -> None:
        self.gradients, self.place = weakref.ref(gradients), place

    def __call__(self, _: Tensor) -> None:
        if (gradients := self.gradients()) is not None:
            gradients.arrived(self.place)


class _BeforeFirst:
    def __init__(self, gradients: Gradients) -> None:
        self.gradients = weakref.ref(gradients)

    def __call__(self, grad: Tensor) -> None:
        if (gradients := self.gradients()) is not None:
            gradients.before_first(grad)


def _is_of(hook: Any, gradients: Gradients) -> bool:
    return isinstance(hook, _Arrival | _BeforeFirst) and hook.gradients() is gradients
