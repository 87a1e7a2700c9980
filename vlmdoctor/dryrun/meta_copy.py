"""A model's twin that has its structure and none of its weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributions import constraints

from vlmdoctor.dryrun.abstract import Abstract
from vlmdoctor.dryrun.unwritten import UNWRITTEN
from vlmdoctor.errors import Unavailable
from vlmdoctor.plain_text import raised


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Whatever is built inside allocates no weights."""
    with torch.device("meta"):
        yield


@contextlib.contextmanager
def building() -> Iterator[None]:
    """A user's factory that is called inside allocates no weights, and its integers are real.

    Rows that are added to an embedding are drawn around the others where those spread in all directions.
    Nobody knows here whether they do; transformers then takes their mean, which is as good without values.
    """
    constraint: Any = constraints.positive_definite
    original = constraint.check

    def check(value: torch.Tensor) -> torch.Tensor:
        return torch.zeros(value.shape[:-2], dtype=torch.bool) if value.is_meta else original(value)

    with Abstract():
        constraint.check = check
        try:
            yield
        finally:
            del constraint.check


def meta_copy(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of `model` with abstract weights (in `dtype`, if given); integer buffers keep their values.

    Raises:
        Unavailable: A part of the model can't be copied.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        made = _abstract(parameter, dtype)
        memo[id(parameter)] = nn.Parameter(made, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        if buffer.is_floating_point() or buffer in UNWRITTEN:
            memo[id(buffer)] = _abstract(buffer, dtype)
    # Gradients, hooks on parameters and the like stay with the original.
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise Unavailable(f"{type(model).__name__} can't be copied: {raised(error)}") from error


def _abstract(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=wanted, device="meta")
