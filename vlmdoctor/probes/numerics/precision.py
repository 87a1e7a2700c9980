"""Hooks on the layers of a model that read off the float types of what goes in and out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from vlmdoctor.engine import Gatherer
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.precision import LayerPrecision, Precision
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.probes.listening import Listening, Outcome
from vlmdoctor.probes.one_pass import observed
from vlmdoctor.subject import Subject

_MEANT = "residual_in_fp32"


def probe(subject: Subject, gather: Gatherer) -> Precision:
    """Reads the float types of what goes in and out of the layers in the one pass."""
    passed(gather)
    return observed(gather, "vlmdoctor.probes.numerics.precision")


def observer(subject: Subject, gather: Gatherer) -> FloatTypes:
    """Looks at what goes in and out of the layers."""
    return FloatTypes(innermost(subject.model))


class FloatTypes:
    """The float types on the way through a model, without what runs under autocast."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {m: canonical_name(f"{name}.").rstrip(".") for name, m in model.named_modules()}
        self._stacks = _layers(model, self._names)

    def attach(self, listening: Listening) -> None:
        """Asks for every module's output, and what layers are given."""
        self._before: list[tuple[str, torch.dtype, str]] = []  # what modules with weights gave out, in order
        self._given: dict[nn.Module, torch.dtype] = {}
        self._found: dict[nn.Module, LayerPrecision] = {}
        self._source: dict[str, tuple[str, str, str]] = {}
        self._inside: dict[str, tuple[str, str, tuple[str, ...]]] = {}
        for module in self._names:
            if module in self._stacks:
                listening.before(module, self._enter)
            listening.after(module, self._leave)

    def _enter(self, module: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        hidden = _hidden((*arguments, *keywords.values()))
        if hidden is not None and not torch.is_autocast_enabled(hidden.device.type):
            self._given.setdefault(module, hidden.dtype)

    def _leave(self, module: nn.Module, arguments: tuple, keywords: dict[str, Any], output: Any) -> None:
        made, weights = _hidden(output), _weights(module)
        if made is None or weights is None:
            return
        self._before.append((self._names[module], made.dtype, _short(weights)))
        if module in self._given and module not in self._found:
            self._judge(module, weights, made)

    def _judge(self, module: nn.Module, weights: torch.dtype, made: torch.Tensor) -> None:
        name, stack, given = self._names[module], self._stacks[module], self._given[module]
        first = not any(layer.stack == stack for layer in self._found.values())
        wider = given.itemsize > weights.itemsize
        self._found[module] = LayerPrecision(
            name=name,
            stack=stack,
            role=role_of(name),
            weights=_short(weights),
            given=_short(given),
            made=_short(made.dtype),
            wider=wider,
        )
        if wider and first:
            earlier = [entry for entry in self._before if not f"{entry[0]}.".startswith(f"{stack}.")]
            last = next((entry for entry in reversed(earlier) if entry[1] == given), None)
            if last is not None:
                self._source[stack] = (stack, last[0], last[2])
        elif not wider and made.dtype.itemsize > weights.itemsize:
            self._inside.setdefault(stack, (stack, name, tuple(sorted(map(_short, _kinds(module))))))

    def conclude(self, outcome: Outcome, forward: Forward) -> Precision:
        """The layers in the order in which they ran."""
        config = getattr(self._model, "config", None)
        places = (config, getattr(config, "text_config", None), *self._model.modules())
        return Precision(
            layers=tuple(self._found.values()),
            source=tuple(self._source.values()),
            inside=tuple(self._inside.values()),
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
