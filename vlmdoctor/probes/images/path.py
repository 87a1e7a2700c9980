"""How far into a model the images get: the last module that what they show still moves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.probes.influence.baseline import Baseline

_SEEING = ("vision", "projector")
Sums = tuple[tuple[float, float], ...]


def image_path(reference: Baseline, changed: Any) -> dict[str, str]:
    """Where the way of the images ends, when nothing behind it moves with them.

    Holds `last`, the last module whose output moved; `ends_in`, the one around or behind it that was given
    something else and gave out the same; or `never`, an image part that is not called at all.
    """
    before, after = _calls(reference, None), _calls(reference, changed)
    if [name for name, _, _ in before] != [name for name, _, _ in after]:
        return {}
    given = [one[1] != other[1] for one, other in zip(before, after, strict=True)]
    moved = [one[2] != other[2] for one, other in zip(before, after, strict=True)]
    names = [name for name, _, _ in before]
    if True not in moved:
        never = _never_called(reference.trials.model, set(names))
        return {"never": never} if never else {}
    # What contains others may hand on what one of them made long before.
    inner = [i for i, name in enumerate(names) if moved[i] and not _contains_any(name, names[:i])]
    last = inner[-1]
    found = {"last": names[last]}
    swallowing = (i for i in range(last + 1, len(names)) if given[i] and not moved[i])
    # Further on, what was given them and went no further may be all of the model, with the text's part.
    near = (names[i] for i in swallowing if all(moved[last:i]) or role_of(names[i]) in _SEEING)
    ends_in = next(near, None)
    return {**found, "ends_in": ends_in} if ends_in else found


def _contains_any(name: str, earlier: list[str]) -> bool:
    return any(other.startswith(name + ".") for other in earlier)


def _calls(reference: Baseline, batch: Any) -> list[tuple[str, Sums, Sums]]:
    """(name, sums of its inputs, sums of its outputs) of each module's calls, in the order of their ends."""
    found: list[tuple[str, Sums, Sums]] = []
    with contextlib.ExitStack() as hooks:
        for raw_name, module in reference.trials.model.named_modules():
            if not raw_name:
                continue  # the whole is given the images whatever becomes of them

            def hook(
                _: nn.Module,
                given: tuple,
                keywords: dict[str, Any],
                output: Any,
                name: str = canonical_name(raw_name + ".").rstrip("."),
            ) -> None:
                found.append((name, _sums((given, keywords)), _sums(output)))

            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        reference.trials.run(batch)
    return found


def _sums(values: Any) -> Sums:
    return tuple(
        (float(value.double().sum()), float(value.double().square().sum())) for value in floats_in(values)
    )


def floats_in(values: Any) -> Iterator[torch.Tensor]:
    """The tensors of floats in what a module is given or gives out, nested as it may be."""
    if isinstance(values, torch.Tensor):
        if values.is_floating_point():
            yield values.detach()
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from floats_in(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from floats_in(value)


def _never_called(model: nn.Module, called: set[str]) -> str | None:
    """The first part with weights, of those that see if any does, that is not called, nor what it holds."""
    names = [
        canonical_name(raw_name + ".").rstrip(".")
        for raw_name, module in model.named_modules()
        if raw_name and any(True for _ in module.parameters())
    ]
    seeing = [name for name in names if role_of(name) == "vision"]
    for name in seeing[:1] or names:
        if not any(one == name or one.startswith(name + ".") for one in called):
            return name
    return None
