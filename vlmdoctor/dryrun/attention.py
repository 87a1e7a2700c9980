"""Scaled dot-product attention by the kernel that a device would choose, not by the one for meta tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

aten = torch.ops.aten
_MOST_FLASH_WIDTH = 256


def kernel_of(device: str) -> dict[Any, Callable[..., Any]]:
    """The functions of `Abstract` that send attention to the kernel of `device`: `cuda` or `cpu`."""
    return {functional.scaled_dot_product_attention: functools.partial(_attend, device)}


def _attend(
    device: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    usual = query.ndim == 4 and query.is_meta and key.is_meta and query.shape[-1] == value.shape[-1]
    # A mask that learns, such as SAM's relative positions.
    learns = attn_mask is not None and attn_mask.requires_grad
    # Neither dropout inside attention nor a gradient of its mask has a kernel of its own on a CPU.
    composite = device == "cpu" and (dropout_p > 0 or learns)
    if not usual or composite or query.shape[-1] != key.shape[-1]:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    heads, kept = query.shape[1], key.shape[1]
    if heads % kept or (heads != kept and not enable_gqa and kept != 1):
        # The functions for meta tensors don't look, the kernels do.
        raise RuntimeError(
            f"The number of heads in key and value ({kept}) must divide the number of heads in query "
            f"({heads}), and equal it without enable_gqa"
        )
    bias = None
    if attn_mask is not None:
        shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        # Raises where the mask does not fit, as the kernel would.
        torch.broadcast_shapes(attn_mask.shape, shape)
        bias = attn_mask if learns else torch.empty(attn_mask.shape, dtype=query.dtype, device="meta")
        bias = bias.to(query.dtype).expand(shape)
    flash = bias is None and query.dtype in (torch.float16, torch.bfloat16)
    if device == "cuda" and flash and query.shape[-1] <= _MOST_FLASH_WIDTH:
        found = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)
        return found[0]
    if device == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=bias, scale=scale
        )[0]
    # This kernel wants as many key heads as query heads.
    if enable_gqa and key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p, is_causal, scale=scale
    )[0]
