"""A model's twin that has its structure and none of its weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.plain_text import raised


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Whatever is built inside allocates no weights."""
    with torch.device("meta"):
        yield


def laid_out(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of `model` with abstract weights (in `dtype`, if given); integer buffers keep their values.

    Raises:
        Unavailable: A part of the model can't be copied.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        made = _abstract(parameter, dtype)
        memo[id(parameter)] = nn.Parameter(made, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            memo[id(buffer)] = _abstract(buffer, dtype)
    # Gradients, hooks on parameters and the like stay with the original.
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise Unavailable(f"{type(model).__name__} can't be copied: {raised(error)}") from error


def _abstract(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=wanted, device="meta")
