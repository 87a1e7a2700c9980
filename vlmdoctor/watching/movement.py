"""What an optimizer step changes, measured on a sample of each parameter on its device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from vlmdoctor.watching.measure import HALF, local, sums

SAMPLE = 65_536  # elements of one tensor that are compared before and after a step
Tensors = Callable[[], Sequence[Tensor | None]]  # asked for anew whenever they are needed


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

    Between steps nothing of the parameters is held: only how to take a sample of each.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._places: list[int] = []
        self._sizes: list[int | None] = []
        self._addresses: list[int | None] = []
        self._groups: list[_Group] = []
        self._copies: list[Tensor] = []

    @property
    def pending(self) -> bool:
        """Whether there are copies to compare with."""
        return bool(self._copies)

    def before(self, places: list[int]) -> None:
        """Copies the samples."""
        tensors = self._local(places)
        sizes = [None if tensor is None else tensor.numel() for tensor in tensors]
        addresses = _addresses(tensors)
        if addresses != self._addresses or sizes != self._sizes or places != self._places:
            self._places, self._sizes, self._addresses = places, sizes, addresses
            self._groups = _grouped(tensors)
        self._copies = [group.sample(tensors) for group in self._groups]

    def forget(self) -> None:
        """Gives up what was copied."""
        self._copies = []

    def after(self) -> Moved:
        """Compares with the copies; a parameter that was exchanged or moved meanwhile is left out."""
        copies, self._copies = self._copies, []
        tensors = self._local(self._places)
        same = _addresses(tensors) == self._addresses
        moved = Moved()
        for made, before in zip(self._groups, copies, strict=True):
            group = made if same else made.cut_again(tensors)
            if group is None:
                continue
            now = group.sample(tensors)
            if (now.shape, now.dtype, now.device) != (before.shape, before.dtype, before.device):
                continue
            # Written as numbers at once: making them of truth values is several times slower.
            changed = torch.ne(now, before, out=torch.empty_like(now, dtype=torch.float32))
            if before.dtype in HALF:
                now, before = now.float(), before.float()
            update = now.sub_(before)
            moved.places += [self._places[number] for number in group.members]
            moved.sizes += group.sizes
            moved.updates.append(sums(update.mul_(update), group.sizes))
            moved.weights.append(sums(before.mul_(before), group.sizes))
            moved.changed.append(sums(changed, group.sizes))
        return moved

    def _local(self, places: list[int]) -> list[Tensor | None]:
        tensors = self._tensors()
        found = [tensors[place] for place in places]
        return [t if t is None or type(t) is nn.Parameter else local(t) for t in found]


@dataclass
class _Group:
    """Parameters of one device and dtype, by their numbers in the list of those measured.

    Attributes:
        whole: Those of which every element is taken; two at least.
        cut: Of the others how a sample is cut: their lengths and strides.
        sizes: How many elements are taken of each, the whole ones first.
    """

    whole: list[int] = field(default_factory=list)
    cut: dict[int, tuple[tuple[int], tuple[int]]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)

    @property
    def members(self) -> list[int]:
        """The numbers, in the order of the sizes."""
        return [*self.whole, *self.cut]

    def sample(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """A copy of the samples, as one vector."""
        held = {number: tensor for number in self.cut if (tensor := tensors[number]) is not None}
        parts = [torch.as_strided(tensor, *self.cut[number]) for number, tensor in held.items()]
        if self.whole:
            # A third of the time that a view of each takes. Of a single tensor it would be no copy.
            joined = _flatten_dense_tensors([tensors[number] for number in self.whole])
            if not parts:
                return joined
            parts = [joined, *parts]
        return torch.cat(parts)

    def cut_again(self, tensors: Sequence[Tensor | None]) -> _Group | None:
        """The same members, of which some lie elsewhere now; None where they are no group any more."""
        members = self.members
        own = set(members)
        groups = _grouped([t if number in own else None for number, t in enumerate(tensors)])
        same = len(groups) == 1 and groups[0].members == members and groups[0].sizes == self.sizes
        return groups[0] if same else None


def _addresses(tensors: Sequence[Tensor | None]) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _grouped(tensors: Sequence[Tensor | None]) -> list[_Group]:
    """How to take the samples of these tensors."""
    views: dict[tuple[torch.device, torch.dtype], dict[int, Tensor]] = {}
    for number, tensor in enumerate(tensors):
        view = None if tensor is None else strided_sample(tensor)
        if view is not None:
            views.setdefault((view.device, view.dtype), {})[number] = view
    groups = []
    for members in views.values():
        whole = [n for n in members if (tensor := tensors[n]) is not None and _is_whole(tensor)]
        whole = whole if len(whole) > 1 else []
        cut = {
            number: ((view.numel(),), (view.stride(0),))
            for number, view in members.items()
            if number not in whole
        }
        sizes = [members[number].numel() for number in (*whole, *cut)]
        groups.append(_Group(whole, cut, sizes))
    return groups


def _is_whole(tensor: Tensor) -> bool:
    plain = type(tensor) in (nn.Parameter, Tensor)
    return plain and tensor.is_contiguous() and tensor.numel() <= SAMPLE


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
