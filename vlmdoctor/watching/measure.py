"""Numbers on the device where they are made, and how they come to the host.

Nothing here reads a value back but `to_host`, in one copy for each device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

HALF = {torch.float16, torch.bfloat16}
Number = Tensor | float  # on its device, or read already


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor; anything else itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def dense(grad: Tensor | None) -> Tensor | None:
    """A gradient's values as an ordinary tensor; of a sparse one the values, summed where repeated."""
    if grad is None or (type(grad) is Tensor and grad.layout is torch.strided):
        return grad
    grad = local(grad.detach())
    return grad.coalesce().values() if grad.layout is torch.sparse_coo else grad


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The 2-norm of each tensor, without overflow in half precision."""
    if not tensors:
        return []
    dtypes = {tensor.dtype for tensor in tensors}
    if not dtypes & HALF:
        return list(torch._foreach_norm(list(tensors)))
    if dtypes <= HALF:
        return list(torch._foreach_norm(list(tensors), 2, torch.float32))
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
