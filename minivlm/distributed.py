"""The processes that train together, as `torchrun` started them, or this one alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from minivlm.errors import UserError


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and on which device it computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints, evaluates and saves."""
        return self.rank == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """`value` summed over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Joins the processes that torchrun started, and leaves them at the end.

    Raises:
        UserError: The device is not there, or a variable of torchrun's is no number.
    """
    size = _whole_number("WORLD_SIZE", 1)
    chosen = choose_device(device, _whole_number("LOCAL_RANK", 0))
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # Numbers that the host wants to know go through gloo: to read them off a GPU would mean to wait for it.
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size, chosen)
    finally:
        dist.destroy_process_group()


def _whole_number(name: str, least: int) -> int:
    """A variable that torchrun sets; `least` where it is not set."""
    value = os.environ.get(name, "").strip() or str(least)
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < least:
        raise UserError(
            f"{name} is set to '{value}', which is no number from {least} on; unset it, or use torchrun."
        )
    return int(value)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of that name; `auto` is the GPU with the number `local_rank`, else MPS, else the CPU.

    Raises:
        UserError: It is unknown, or not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"--device is '{name}', which is unknown; it is auto, cpu, cuda, cuda:1 or mps."
        ) from error
    if device.type == "cuda":
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise UserError(
                f"--device is '{name}', but torch sees {torch.cuda.device_count()} GPUs here; "
                "use --device cpu, or find out why with: vlmdoctor check-env"
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device is 'mps', but torch sees no Apple GPU here; use --device cpu.")
    return device
