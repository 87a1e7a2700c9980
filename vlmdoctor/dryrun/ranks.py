"""A model sharded over ranks that are not there: PyTorch's own FSDP2 over a process group that is a stand-in.

The group answers at once and moves nothing, so one process lays out what rank 0 of any number holds, gathers
and reduces. Rank 0 has the most: where rows can't be divided evenly, the last ranks have fewer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable, UserError
from vlmdoctor.plain_text import first_line


@contextlib.contextmanager
def ranks(world_size: int) -> Iterator[Any]:
    """A mesh of that many ranks, of which this process is the first; nothing of it is left afterwards.

    Raises:
        Unavailable: This PyTorch has no such group, or the process is in a group of its own.
    """
    try:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError as error:
        raise Unavailable(f"this PyTorch can't stand in for other ranks: {first_line(error)}") from error
    if not dist.is_available() or dist.is_initialized():
        raise Unavailable("this process is in a process group already")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield init_device_mesh("cpu", (world_size,))
    finally:
        dist.destroy_process_group()


def sharded(model: nn.Module, mesh: Any, autocast: torch.dtype | None = None) -> nn.Module:
    """`model`, which has to be laid out without weights, under FSDP2: each block by itself, then the rest.

    Args:
        autocast: What parameters are gathered in; gradients are then reduced in float32.

    Raises:
        UserError: It has no repeated blocks, or none that so many ranks could share.
        Unavailable: FSDP2 can't wrap it.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    blocks = blocks_of(model)
    if not blocks:
        raise UserError(f"--shard fsdp2: {type(model).__name__} has no repeated layers to shard one by one.")
    rows = max((p.shape[0] for p in model.parameters() if p.ndim), default=0)
    if mesh.size() > rows:
        raise UserError(
            f"--world-size {mesh.size()} is more than the layers can be shared among: "
            f"no tensor of {type(model).__name__} has more than {rows} rows."
        )
    policy = (
        MixedPrecisionPolicy()
        if autocast is None
        else MixedPrecisionPolicy(param_dtype=autocast, reduce_dtype=torch.float32)
    )
    try:
        for block in (*blocks, model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
    except (ValueError, TypeError, NotImplementedError, AssertionError, RuntimeError) as error:
        first = first_line(error)
        raise Unavailable(f"FSDP2 can't shard {type(model).__name__}: {first}") from error
    return model


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Inside, FSDP2 runs on the meta device, which it else refuses for fear of forgotten weights."""
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    groups: Any = FSDPParamGroup
    refuse = groups._validate_no_meta_params
    groups._validate_no_meta_params = lambda group: None
    try:
        yield
    finally:
        groups._validate_no_meta_params = refuse


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers that are sharded one by one: those the model may not be split inside, else repeated ones.

    The former are named by transformers' `_no_split_modules`, as its Trainer and accelerate take them.
    """
    named = {name for m in model.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    blocks = _outermost(model, lambda m: type(m).__name__ in named)
    if len(blocks) > 1:
        return blocks
    repeated = {
        id(member)
        for holder in model.modules()
        if isinstance(holder, nn.ModuleList | nn.Sequential) and len(holder) > 1
        for member in holder
        if type(member) is type(holder[0]) and any(member.children())
    }
    return _outermost(model, lambda m: id(m) in repeated)


def _outermost(module: nn.Module, chosen: Any) -> list[nn.Module]:
    found = []
    for child in module.children():
        if chosen(child):
            if next(child.parameters(), None) is not None:
                found.append(child)
        else:
            found += _outermost(child, chosen)
    return list(dict.fromkeys(found))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor."""
    held = getattr(tensor, "_local_tensor", None)
    return tensor if held is None else held
