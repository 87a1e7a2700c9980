"""Gradients before the step: their norm, clipping, and steps that must not be taken."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from minivlm.errors import UserError

STOP_AFTER = 20
"""So many steps in a row without a finite gradient end the run: it won't recover by itself."""


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> torch.Tensor:
    """Scales the gradients down to the norm `largest` (0: never) and returns the norm they had before.

    Unlike torch's own clipping it leaves gradients alone whose norm is not finite: multiplying all of them
    with NaN would hide which one it came from. Nothing here waits for the GPU.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest > 0 and gradients:
        scale = torch.where(norm.isfinite(), largest / (norm + 1e-6), 1.0).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
    return norm


class Stepper:
    """Steps the optimizer unless the gradient is not finite; counts on the device, without waiting for it.

    Args:
        optimizer: A fused one.
        scaler: The gradient scaler where there is one; gradients must have been unscaled.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        device = optimizer.param_groups[0]["params"][0].device
        self._skipped = torch.zeros((), device=device)
        self._in_a_row = torch.zeros((), device=device)

    @property
    def skipped(self) -> int:
        """Steps that were not taken because the gradient was not finite; waits for the device."""
        return int(self._skipped)

    def step(self, norm: torch.Tensor) -> None:
        """Takes the step, or leaves weights and optimizer state as they are if `norm` is not finite."""
        bad = (~norm.isfinite()).float()
        if self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            # Fused optimizers read this attribute: it is how torch's GradScaler has them skip a step.
            self._optimizer.found_inf = bad  # type: ignore[attr-defined]
            self._optimizer.step()
        self._skipped += bad
        self._in_a_row.add_(1).mul_(bad)

    def check(self, step: int) -> None:
        """Waits for the device.

        Raises:
            UserError: Too many steps in a row had no finite gradient.
        """
        if self._in_a_row >= STOP_AFTER:
            raise UserError(
                f"the gradient was not finite in the last {int(self._in_a_row)} steps up to step {step}, and "
                "none of them was taken; lower --lr, or see with --precision fp32 whether the precision is "
                "the cause."
            )
