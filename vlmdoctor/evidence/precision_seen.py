"""Hooks on the layers of a model that read off the float types of what goes in and out."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from typing import Any

import torch
from torch import nn

from vlmdoctor.evidence.precision import LayerPrecision, Precision
from vlmdoctor.evidence.trials import innermost
from vlmdoctor.invoke import run
from vlmdoctor.subject import Subject, canonical_name, role_of
from vlmdoctor.unchanged import copy_of

_MEANT = "residual_in_fp32"


def watched(subject: Subject) -> Precision:
    """One pass, seen from inside; use inside `unchanged`."""
    model = innermost(subject.model)
    names = {module: canonical_name(f"{name}.").rstrip(".") for name, module in model.named_modules()}
    stacks = _layers(model, names)
    before: list[tuple[str, torch.dtype, str]] = []  # what modules with weights gave out, in their order
    given: dict[nn.Module, torch.dtype] = {}
    found: dict[nn.Module, LayerPrecision] = {}
    source: dict[str, tuple[str, str, str]] = {}
    inside: dict[str, tuple[str, str, tuple[str, ...]]] = {}

    def enter(module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        hidden = _hidden((*arguments, *keywords.values()))
        if hidden is not None and not torch.is_autocast_enabled(hidden.device.type):
            given.setdefault(module, hidden.dtype)

    def leave(module: nn.Module, arguments: tuple, keywords: dict[str, Any], output: Any) -> None:
        made, weights = _hidden(output), _weights(module)
        if made is None or weights is None:
            return
        before.append((names[module], made.dtype, _short(weights)))
        if module not in stacks or module not in given or module in found:
            return
        stack = stacks[module]
        wider = given[module].itemsize > weights.itemsize
        found[module] = LayerPrecision(
            names[module],
            stack,
            role_of(names[module]),
            _short(weights),
            _short(given[module]),
            _short(made.dtype),
            wider,
        )
        first = not any(layer.stack == stack for other, layer in found.items() if other is not module)
        if wider and first:
            earlier = [entry for entry in before if not f"{entry[0]}.".startswith(f"{stack}.")]
            last = next((name for name in reversed(earlier) if name[1] == given[module]), None)
            if last is not None:
                source[stack] = (stack, last[0], last[2])
        elif not wider and made.dtype.itemsize > weights.itemsize:
            inside.setdefault(stack, (stack, names[module], tuple(sorted(map(_short, _kinds(module))))))

    with contextlib.ExitStack() as hooks, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for module in names:
            if module in stacks:
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        runs = model if subject.loss_fn is None else subject.model
        run(runs, copy_of(subject.batch), subject.loss_fn)
    config = getattr(model, "config", None)
    places = (config, getattr(config, "text_config", None), *model.modules())
    return Precision(
        tuple(found.values()),
        tuple(source.values()),
        tuple(inside.values()),
        meant=any(getattr(place, _MEANT, False) is True for place in places),
    )


def _layers(model: nn.Module, names: dict[nn.Module, str]) -> dict[nn.Module, str]:
    """The entries of the outermost stacks of like layers, with the name of their stack."""
    found: dict[nn.Module, str] = {}
    within: set[nn.Module] = set()
    for stack in model.modules():
        if not isinstance(stack, nn.ModuleList | nn.Sequential) or stack in within:
            continue
        kinds = Counter(type(layer) for layer in stack if len(list(layer.parameters())) > 1)
        most = kinds.most_common(1)
        if most and most[0][1] > 1:
            for layer in stack:
                if type(layer) is most[0][0]:
                    found[layer] = names[stack]
                    within.update(layer.modules())
    return found


def _hidden(value: Any, depth: int = 2) -> torch.Tensor | None:
    """The first activations [B, T, C] or wider among arguments or results."""
    if isinstance(value, torch.Tensor):
        return value if value.is_floating_point() and value.ndim > 1 else None
    if not depth or not isinstance(value, tuple | list | dict):
        return None
    values = value.values() if isinstance(value, dict) else value
    return next((t for part in values if (t := _hidden(part, depth - 1)) is not None), None)


def _kinds(module: nn.Module) -> Counter[torch.dtype]:
    """How many numbers of each float type are among the weights; what is packed into bytes is none."""
    kinds: Counter[torch.dtype] = Counter()
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.element_size() > 1:
            kinds[parameter.dtype] += parameter.numel()
    return kinds


def _weights(module: nn.Module) -> torch.dtype | None:
    most = _kinds(module).most_common(1)
    return most[0][0] if most else None


def _short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
