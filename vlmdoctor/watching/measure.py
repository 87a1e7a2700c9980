"""Measuring parameters on their device: gradient norms as backward leaves them, and what a step moves.

Nothing here reads a value back; `to_host` does, in one copy for each device.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmdoctor.sandbox import examining

SAMPLE = 65_536  # elements of one tensor that are compared before and after a step
Tensors = Callable[[], Sequence[Tensor | None]]  # asked for anew whenever they are needed
_HALF = {torch.float16, torch.bfloat16}


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
        self.norms: dict[int, Tensor] = {}
        self.order: list[int] = []  # as they arrived in the last backward: nearest the loss first
        self.in_backward = False
        self.residue: Tensor | None = None
        self.residue_known = False
        self._tensors: Tensors = list
        self._probe = 0
        self._checks = examining.anywhere()  # of which this one may be a part
        self._arrived: list[int] = []
        self._handles: list[Any] = []
        self._ended = guard(self._measure)
        self._requeue = guard(lambda: torch.autograd.Variable._execution_engine.queue_callback(self._ended))
        self._before_first = guard(self._note_residue)

    def arm(self, tensors: Tensors, probe: int | None) -> None:
        """Watches the parameters that require gradients; `probe` is one to be looked at for a gradient
        left over from the step before."""
        self._tensors = tensors
        now = tensors()
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
        for tensor in self._tensors():
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

    def measure(self, places: Iterable[int]) -> dict[int, Tensor]:
        """Norms of the present gradients of these parameters; those without one are left out."""
        tensors = self._tensors()
        have = [
            (place, values)
            for place in places
            if (tensor := tensors[place]) is not None and (values := dense(tensor.grad)) is not None
        ]
        return dict(zip((p for p, _ in have), norms([values for _, values in have]), strict=True))

    def arrived(self, place: int) -> None:
        """The gradient of a parameter was accumulated."""
        self._arrived.append(place)
        if not self.in_backward:
            self.in_backward = True
            # Twice queued, so that it runs after what others queue meanwhile: DDP averages the
            # gradients in a callback of its own.
            torch.autograd.Variable._execution_engine.queue_callback(self._requeue)

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
        probe = self._tensors()[self._probe]
        left = None if probe is None else dense(probe.grad)
        if left is not None:
            with torch.no_grad():
                self.residue = norms([left])[0]


class _Arrival:
    """Autograd holds hooks where the garbage collector can't see: it may not hold the watcher."""

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


@dataclass
class Moved:
    """What a step changed, in one order; vectors, one for each device and dtype.

    Attributes:
        places: Places of the parameters measured.
        sizes: How many elements of each were measured.
        updates: Squared norms of the updates of these elements.
        weights: Squared norms of these elements before it.
        changed: How many of them changed.
    """

    places: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    updates: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    changed: list[Tensor] = field(default_factory=list)


class Movement:
    """What an optimizer step changes, on a strided sample of each parameter.

    Between steps nothing of the parameters is held: only how to cut a sample out of each.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._layout: list[tuple[Any, ...] | None] = []
        self._laid_out: list[int] = []
        self._cuts: list[tuple[tuple[int], tuple[int]] | None] = []
        self._pending: list[tuple[list[int], Sequence[Tensor | None], Tensor]] = []
        self._places: list[int] = []

    @property
    def pending(self) -> bool:
        """Whether there are copies to compare with."""
        return bool(self._pending)

    def before(self, places: list[int]) -> None:
        """Copies the samples."""
        self._places = places
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[int], list[Tensor]]] = {}
        for place, view in zip(places, self._views(places), strict=True):
            if view is not None:
                members, views = groups.setdefault((view.device, view.dtype), ([], []))
                members.append(place)
                views.append(view)
        self._pending = [(members, views, torch.cat(views)) for members, views in groups.values()]

    def forget(self) -> None:
        """Gives up what was copied."""
        self._pending = []

    def after(self) -> Moved:
        """Compares with the copies; a parameter that was exchanged or moved meanwhile is left out."""
        pending, self._pending = self._pending, []
        moved = Moved()
        # The copies' views hold the storage, so that its address is no other's meanwhile.
        addresses = [t if t is None else t.data_ptr() for t in self._locals(self._places)]
        if addresses != [one if one is None else one[0] for one in self._layout]:
            again = dict(zip(self._places, self._views(self._places), strict=True))
            pending = [
                (members, [again[place] for place in members], before) for members, _, before in pending
            ]
        for members, found, before in pending:
            alike = before.dtype, before.device
            views = [view for view in found if view is not None and (view.dtype, view.device) == alike]
            if len(views) < len(found):
                continue
            sizes = [view.numel() for view in views]
            now = torch.cat(views)
            if now.shape != before.shape:
                continue
            # Written as numbers at once: making them of truth values is several times slower.
            changed = torch.ne(now, before, out=torch.empty_like(now, dtype=torch.float32))
            if before.dtype in _HALF:
                now, before = now.float(), before.float()
            update = now.sub_(before)
            moved.places += members
            moved.sizes += sizes
            moved.updates.append(sums(update.mul_(update), sizes))
            moved.weights.append(sums(before.mul_(before), sizes))
            moved.changed.append(sums(changed, sizes))
        return moved

    def _locals(self, places: list[int]) -> list[Tensor | None]:
        tensors = self._tensors()
        return [_local_or_none(tensors[place]) for place in places]

    def _views(self, places: list[int]) -> list[Tensor | None]:
        """Views of the parameters' own storage; how they are cut is found anew where that was exchanged."""
        tensors = self._locals(places)
        layout = [None if t is None else (t.data_ptr(), t.shape, t.stride()) for t in tensors]
        if layout != self._layout or places != self._laid_out:
            found = [None if t is None else strided_sample(t) for t in tensors]
            self._layout, self._laid_out = layout, places
            self._cuts = [None if v is None else ((v.numel(),), (v.stride(0),)) for v in found]
            return found
        return [
            None if t is None or cut is None else torch.as_strided(t, *cut)
            for t, cut in zip(tensors, self._cuts, strict=True)
        ]


def _local_or_none(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or type(tensor) is torch.nn.Parameter else local(tensor)


def strided_sample(tensor: Tensor) -> Tensor | None:
    """A flat view of at most `SAMPLE` elements spread over `tensor`; None where there can be none."""
    values = tensor.detach()
    if values.numel() == 0 or values.device.type == "meta":
        return None
    if not values.is_contiguous():
        values = values.permute(sorted(range(values.ndim), key=values.stride, reverse=True))
    if not values.is_contiguous():
        return None  # flattening would copy it, and no step would be seen in the copy
    flat = values.view(-1)
    stride = -(-flat.numel() // SAMPLE)
    # Not in step with the rows, or one column would stand for all.
    while stride > 1 and math.gcd(stride, values.shape[-1]) > 1:
        stride += 1
    return flat[::stride]


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor; anything else itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def dense(grad: Tensor | None) -> Tensor | None:
    """A gradient's values as an ordinary tensor; of a sparse one the values, summed where repeated."""
    if grad is None or (type(grad) is Tensor and grad.layout is torch.strided):
        return grad
    grad = local(grad.detach())
    return grad.coalesce().values() if grad.layout is torch.sparse_coo else grad


def norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """The 2-norm of each tensor, without overflow in half precision."""
    if not tensors:
        return []
    dtypes = {tensor.dtype for tensor in tensors}
    if not dtypes & _HALF:
        return torch._foreach_norm(tensors)
    if dtypes <= _HALF:
        return torch._foreach_norm(tensors, 2, torch.float32)
    return [norms([tensor])[0] for tensor in tensors]


def sums(values: Tensor, sizes: list[int]) -> Tensor:
    """Sums over consecutive pieces of `values`, none of them negative."""
    return sums_on_host(values, sizes) if on_host([values.device]) else sums_on_device(values, sizes)


def sums_on_host(values: Tensor, sizes: list[int]) -> Tensor:
    """In a third of the time of ninety small torch operations."""
    starts = np.concatenate(([0], np.cumsum(sizes[:-1], dtype=np.intp)))
    return torch.from_numpy(np.add.reduceat(values.numpy(), starts))


def sums_on_device(values: Tensor, sizes: list[int]) -> Tensor:
    """In a few kernels for all pieces."""
    return torch.stack(torch._foreach_norm(values.split(sizes), 1))


def on_host(devices: Iterable[torch.device]) -> bool:
    """Whether values there are read without waiting for an accelerator."""
    return all(device.type == "cpu" for device in devices)


def to_host(values: Sequence[Tensor]) -> list[float]:
    """Scalars and vectors as one list of numbers: joined on their device and copied once."""
    devices = {value.device for value in values}
    if on_host(devices):
        # Nothing to copy, and joining hundreds of scalars takes longer than reading them.
        return [n for value in values for n in (value.tolist() if value.ndim else (value.item(),))]
    if len(devices) == 1:
        return torch.cat([value.reshape(-1) for value in values]).tolist()
    found: dict[int, list[float]] = {}
    for device in devices:
        places = [place for place, value in enumerate(values) if value.device == device]
        numbers = iter(to_host([values[place] for place in places]))
        found |= {place: [next(numbers) for _ in range(values[place].numel())] for place in places}
    return [number for place in range(len(values)) for number in found[place]]
