"""One walk through the modules: modes, dropouts, repeated layers, and tensors without values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.module_tree import ModuleTree, RunningNorm, Stack
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.subject import Subject

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_SHARE = re.compile(
    r"((attention|attn|hidden|resid|residual|embd|activation|ffn)_?)?(dropout|pdrop)(_p|_prob)?"
)


def probe(subject: Subject, gather: Callable[[type], Any]) -> ModuleTree:
    """Reads modes, flags, devices and identities; nothing is run."""
    if not isinstance(subject.model, nn.Module):
        raise Unavailable("no built model was given")
    return scan(subject.model)


def scan(model: nn.Module, *, dry_run: bool = False) -> ModuleTree:
    """The same for a model; `dry_run` where its weights are not meant to have values."""
    modules = dict(model.named_modules())
    parameters = list(model.named_parameters())
    tied = getattr(model, "_tied_weights_keys", None) or ()
    return ModuleTree(
        training=model.training and any(p.requires_grad for _, p in parameters),
        batch_norms=tuple(_batch_norms(modules)),
        dropouts=tuple(_dropouts(modules)),
        stacks=tuple(_stacks(modules)),
        shares_by_design=any("layers" in str(key) for key in tied),
        parameters=len(parameters),
        meta_parameters=tuple(canonical_name(name) for name, p in parameters if p.is_meta),
        meta_buffers=tuple(canonical_name(name) for name, b in model.named_buffers() if b.is_meta),
        hooked=any(hasattr(module, "_hf_hook") for module in modules.values()),
        dry_run=dry_run,
    )


def _name(raw_name: str) -> str:
    return canonical_name(f"{raw_name}.").rstrip(".")


def _batch_norms(modules: Mapping[str, nn.Module]) -> Iterator[RunningNorm]:
    for raw_name, module in modules.items():
        if not isinstance(module, _BatchNorm) or module.running_mean is None or module.momentum == 0:
            continue
        name = _name(raw_name)
        around = modules[raw_name.rpartition(".")[0]].parameters()
        yield RunningNorm(
            name=name,
            module_class=type(module).__name__,
            role=role_of(name),
            training=module.training,
            frozen=any(True for _ in module.parameters()) and not any(p.requires_grad for p in around),
        )


def _dropouts(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, float]]:
    for raw_name, module in modules.items():
        if isinstance(module, _DROPOUTS):
            yield _name(raw_name), float(module.p)
        for attribute, value in vars(module).items():
            if isinstance(value, float) and _SHARE.fullmatch(attribute):
                yield f"{_name(raw_name)}.{attribute}".lstrip("."), value


def _stacks(modules: Mapping[str, nn.Module]) -> Iterator[Stack]:
    """Entries are compared by identity."""
    for raw_name, module in modules.items():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        entries = [layer for layer in module if any(True for _ in layer.parameters())]
        if len(entries) > 1:
            yield Stack(
                name=canonical_name(raw_name),
                layer=type(entries[0]).__name__,
                entries=len(entries),
                different=len({id(layer) for layer in entries}),
            )
