"""The normalisations whose running statistics follow whatever batches come through in training mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.batch_norms import BatchNorms, RunningNorm
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.subject import Subject


def probe(subject: Subject, gather: Callable[[type], Any]) -> BatchNorms:
    """Reads modes and flags only."""

    if not isinstance(subject.model, nn.Module):
        raise Unavailable("no built model was given")
    norms = []
    modules = dict(subject.model.named_modules())
    for raw_name, module in modules.items():
        if not isinstance(module, _BatchNorm) or module.running_mean is None or module.momentum == 0:
            continue
        name = canonical_name(f"{raw_name}.").rstrip(".")
        around = modules[raw_name.rpartition(".")[0]].parameters()
        frozen = any(True for _ in module.parameters()) and not any(p.requires_grad for p in around)
        norms.append(
            RunningNorm(
                name=name,
                module_class=type(module).__name__,
                role=role_of(name),
                training=module.training,
                frozen=frozen,
            )
        )
    learns = any(p.requires_grad for p in subject.model.parameters())
    return BatchNorms(training=subject.model.training and learns, norms=tuple(norms))
