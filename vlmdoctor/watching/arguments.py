"""What a watcher can't be given."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlmdoctor.errors import UserError
from vlmdoctor.subject import optimizers
from vlmdoctor.watching.optimizers import innermost


def refuse_exchanged(model: Any, optimizer: Any) -> None:
    """Raises `UserError` for arguments that can't be meant."""
    kind = type(model).__name__
    if hasattr(model, "param_groups"):
        raise UserError(f"watch() takes the model first and the optimizer second; the first one is {kind}.")
    if hasattr(model, "model") and hasattr(model, "train") and not isinstance(model, nn.Module):
        raise UserError(
            f"watch() needs the model of a loop of one's own; give {kind} the callback "
            "VLMDoctorCallback() from vlmdoctor.integrations instead."
        )
    if not isinstance(model, nn.Module):
        raise UserError(f"watch() needs a torch.nn.Module to watch, not {kind}.")
    for one in optimizers(optimizer):
        if isinstance(one, nn.Module):
            raise UserError(f"watch() takes one model, and the optimizer second, not {type(one).__name__}.")
        if not hasattr(innermost(one), "param_groups"):
            kind = type(one).__name__
            raise UserError(f"watch() takes the optimizer second, or a list of them, not {kind}.")
