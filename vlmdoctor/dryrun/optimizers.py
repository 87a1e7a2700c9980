"""What optimizers keep beside the weights, and hold while they update."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

_BLOCK = 256  # bitsandbytes has one float32 for so many numbers of a state of 8 bits,
_SMALL = 4096  # and keeps the states of tensors smaller than this in 32


@dataclass(frozen=True)
class Optimizer:
    """How an optimizer treats a tensor.

    Attributes:
        states: Tensors of state, each like the parameter.
        bits: Of a number of them; 0: those of the parameter.
        copies: Copies of all gradients that are alive while it updates (those of torch that do all tensors
            at once hold some).
        factored: Whether rows and columns stand for the matrix, as in Adafactor.
        paged: Whether the state may leave the GPU.
    """

    states: int
    bits: int = 0
    copies: int = 0
    factored: bool = False
    paged: bool = False


OPTIMIZERS = {
    "adamw": Optimizer(2, copies=1),
    "adamw-fused": Optimizer(2),
    "adamw-8bit": Optimizer(2, bits=8),
    "paged-adamw": Optimizer(2, bits=32, paged=True),
    "paged-adamw-8bit": Optimizer(2, bits=8, paged=True),
    "lion": Optimizer(1),
    "lion-8bit": Optimizer(1, bits=8),
    "adafactor": Optimizer(1, factored=True),
    "sgd-momentum": Optimizer(1),
    "sgd": Optimizer(0),
    "none": Optimizer(0),
}
# The names that transformers' `TrainingArguments.optim` has for them.
OF_TRAINER = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw-fused",
    "adamw_bnb_8bit": "adamw-8bit",
    "adamw_8bit": "adamw-8bit",
    "paged_adamw": "paged-adamw",
    "paged_adamw_32bit": "paged-adamw",
    "paged_adamw_8bit": "paged-adamw-8bit",
    "lion_32bit": "lion",
    "lion": "lion",
    "lion_8bit": "lion-8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}


def optimizer_bytes(name: str, tensors: Iterable[torch.Tensor]) -> tuple[int, int]:
    """Bytes of state, and bytes that come on top while it updates."""
    optimizer = OPTIMIZERS[name]
    state = temporary = 0
    for tensor in tensors:
        if optimizer.factored:
            state += _factored(tensor)
            # The squared gradient and the update of one tensor at a time, in float32.
            temporary = max(temporary, 3 * 4 * tensor.numel())
            continue
        if not optimizer.paged:
            state += optimizer.states * _state(optimizer, tensor)
        temporary += optimizer.copies * tensor.nbytes
    return state, temporary


def _state(optimizer: Optimizer, tensor: torch.Tensor) -> int:
    if not optimizer.bits:
        return tensor.nbytes
    if optimizer.bits == 32 or tensor.numel() < _SMALL:
        return 4 * tensor.numel()
    return tensor.numel() + 4 * math.ceil(tensor.numel() / _BLOCK)


def _factored(tensor: torch.Tensor) -> int:
    if tensor.ndim < 2 or not tensor.numel():
        return 4 * tensor.numel()
    return 4 * (tensor.numel() // tensor.shape[-1] + tensor.numel() // tensor.shape[-2])
