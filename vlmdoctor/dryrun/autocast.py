"""Autocast over abstract tensors.

PyTorch casts by the device of a tensor, and has no autocast for the meta device. This mode casts before each
function as the autocast of `cuda` or `cpu` would. Which functions autocast knows is asked of PyTorch; only
those that it runs in the lower precision are listed here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_LOWER = frozenset(
    {
        *("conv1d", "conv2d", "conv3d", "conv_tbc", "convolution", "prelu", "linear", "matmul", "rmatmul"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "einsum", "mm", "mv", "bmm", "addmm"),
        *("addmv", "addr", "addbmm", "baddbmm", "chain_matmul", "linalg_multi_dot", "linalg_vecdot"),
        *("gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell", "scaled_dot_product_attention"),
        *("multi_head_attention_forward", "_addmm_activation"),
    }
)
# Cast to the widest dtype of what is given, as most functions promote by themselves.
_PROMOTED = frozenset(
    {
        *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put"),
        *("scatter_add", "tensordot", "cat", "stack", "index_copy"),
    }
)
# These keep a dtype that the caller asks for.
_TAKES_DTYPE = frozenset({"softmax", "log_softmax", "cumprod", "cumsum", "prod", "sum"})


class Autocast(TorchFunctionMode):
    """Casts what autocast casts.

    Args:
        dtype: The lower precision: bfloat16 or float16.
        device: Whose autocast: `cuda` or `cpu`.
    """

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self._dtype = dtype
        registered = torch._C._dispatch_get_registrations_for_dispatch_key(f"Autocast{device.upper()}")
        names = {name.split("::")[-1].split(".")[0] for name in registered}
        self._upper = names - _LOWER - _PROMOTED
        if "nll_loss" in self._upper and "log_softmax" in self._upper:
            self._upper.add("cross_entropy")  # which is made of these two
        self._caching = True
        self._weights: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_") if not _in_place(func) else ""
        if name in _LOWER:
            args, kwargs = tree_map_only(torch.Tensor, self._lower, (args, kwargs))
        elif name in self._upper and not (name in _TAKES_DTYPE and kwargs.get("dtype") is not None):
            args, kwargs = tree_map_only(torch.Tensor, _upper, (args, kwargs))
        return func(*args, **kwargs)

    def forget(self) -> None:
        """Gives up the weights that were cast, as leaving autocast does after forward."""
        self._weights.clear()
        self._caching = False

    def _lower(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.dtype in (torch.float64, self._dtype):
            return tensor
        if not (self._caching and tensor.requires_grad and tensor.is_leaf and tensor.dtype is torch.float32):
            return tensor.to(self._dtype)
        # A weight is cast once in a forward pass. It is held, so that its identity is not given to another.
        if id(tensor) not in self._weights:
            self._weights[id(tensor)] = (tensor, tensor.to(self._dtype))
        return self._weights[id(tensor)][1]


def _upper(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name.endswith("_") and not name.endswith("__")
