"""Whether a pass needs the other processes of a run."""

from __future__ import annotations

import torch
from torch import nn


def communicates(model: nn.Module) -> bool:
    """Whether a forward pass needs all processes: repeated in one of them alone it would hang for ever."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    kinds = ("SyncBatchNorm", "FullyShardedDataParallel", "DeepSpeedEngine")
    return any(type(module).__name__ in kinds for module in model.modules()) or any(
        hasattr(parameter, "to_local") or hasattr(parameter, "ds_id") for parameter in model.parameters()
    )
