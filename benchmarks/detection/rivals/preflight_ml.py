"""preflight-ml: ten checks of a data loader, with a model and a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.detection.rivals.rival import Said, loss_of, raised
from vlmdoctor.subject import Subject

NAME = "preflight-ml"
REQUIREMENT = "preflight-ml==0.1.1"
USED = (
    "`run_checks` on a loader whose batches are the tensors of the case; it calls the model with the first "
    "of them alone, so that the model is wrapped to take its whole batch all the same and to give its loss"
)
CAUSES = (
    *raised("gradient_check", "Backward pass failed"),
    ("gradient_check", "Backward pass failed.*does not require grad", "no-gradient"),
    ("gradient_check", "no gradient|zero gradient", "no-gradient"),
    ("gradient_check", "exploding", "exploding-gradient"),
    *raised("shape_mismatch"),
    ("nan_inf_detection", "", "pixels-not-usable"),
    ("normalisation_sanity", "", "pixel-range"),
)


class _Wrapped(nn.Module):
    """The model under its call with one tensor: its loss on the whole batch."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.model = subject.model
        self.subject = subject

    def forward(self, first: torch.Tensor) -> Any:
        return loss_of(self.subject)


def examine(subject: Subject) -> list[Said]:
    """Its failed checks."""
    from preflight.runner import run_checks

    batch = subject.batch
    tensors = [
        t for t in (batch.values() if isinstance(batch, dict) else batch) if isinstance(t, torch.Tensor)
    ]
    tensors.sort(key=lambda tensor: not tensor.is_floating_point())  # the images first, as it wants them
    loader = [tuple(tensors)]
    results = run_checks(loader, _Wrapped(subject), lambda loss, targets: loss, {})
    return [
        Said(result.name, "error" if result.severity.name == "FATAL" else "warning", result.message)
        for result in results
        if not result.passed and result.severity.name != "INFO"
    ]
