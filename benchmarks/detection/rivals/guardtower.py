"""guardtower: one instrumented training step."""

from __future__ import annotations

import torch

from benchmarks.detection.rivals.rival import Said, loss_of, optimizer_of, raised
from vlmdoctor.subject import Subject

NAME = "guardtower"
REQUIREMENT = "guardtower==0.1.0"
USED = (
    "`audit` with its defaults: the model, a step that makes the loss, the optimizer, and the floating-point "
    "tensors of the batch as inputs"
)
CAUSES = (
    *raised("loss", "step_fn raised"),
    ("loss", "does not require grad|NoneType", "no-gradient"),
    ("loss", "non-finite", "non-finite-forward"),
    ("backward", "", "backward-raises"),
    ("grad_connectivity", "", "no-gradient"),
    (
        "optimizer_coverage",
        "NOT in the optimizer",
        "trainable-not-in-optimizer optimizer-holds-other-tensors",
    ),
    ("optimizer_coverage", "frozen", "frozen-by-mistake"),
    ("nonfinite", "", "non-finite non-finite-forward"),
    ("dead_relu", "", "image-without-effect"),
    ("grad_norms", "large", "exploding-gradient"),
    ("grad_norms", "tiny", "vanishing-gradient"),
    ("input_dependency", "", "image-without-effect"),
    ("train_mode", "", "PARAM"),
    ("lora_adapter", "", "frozen-by-mistake"),
    ("lora_base_frozen", "", "trained-by-mistake"),
    ("lora_optimizer", "", "trainable-not-in-optimizer"),
)


def examine(subject: Subject) -> list[Said]:
    """Its failures and warnings."""
    import guardtower

    batch = subject.batch
    tensors = list(batch.values()) if isinstance(batch, dict) else list(batch)
    inputs = [t for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()]
    report = guardtower.audit(
        subject.model,
        lambda: loss_of(subject),
        optimizer=optimizer_of(subject),
        inputs=inputs or None,
    )
    return [Said(f.check, "error", f.message) for f in report.errors] + [
        Said(f.check, "warning", f.message) for f in report.warnings
    ]
