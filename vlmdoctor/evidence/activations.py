"""Looking at every module's output in one forward pass."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.inputs import Inputs
from vlmdoctor.evidence.numerics import Culprit, Numerics
from vlmdoctor.evidence.trials import innermost
from vlmdoctor.invoke import run
from vlmdoctor.subject import Subject, canonical_name
from vlmdoctor.unchanged import copy_of, unchanged
from vlmdoctor.watching.nonfinite import nonfinite_weights


def watch_activations(subject: Subject, forward: Forward) -> Numerics:
    """One forward pass of `subject`, in the mode that it is in, seen from inside."""
    model = innermost(subject.model)
    culprit: Culprit | None = None
    largest, largest_at = 0.0, None

    def hook(module: nn.Module, given: tuple, keywords: dict[str, Any], output: Any) -> None:
        nonlocal culprit, largest, largest_at
        made = list(_floats(output))
        for tensor in made:
            peak = float(tensor.detach().abs().amax()) if tensor.numel() else 0.0
            # A comparison with infinity is false for NaN, too.
            if peak < float("inf"):
                # What is exactly the lowest number of its type is a mask.
                if peak > largest and peak < torch.finfo(tensor.dtype).max:
                    largest, largest_at = peak, names[module]
            elif culprit is None:
                inputs = [t for t in _floats((given, keywords)) if t.numel()]
                if all(_is_usable(t) for t in inputs):
                    peaks = [float(t.detach().abs().amax()) for t in inputs]
                    finite = [peak for peak in peaks if peak < float("inf")]
                    weights = all(bool(p.isfinite().all()) for p in module.parameters())
                    culprit = Culprit(
                        names[module],
                        type(module).__name__,
                        str(tensor.dtype).removeprefix("torch."),
                        max(finite, default=None),
                        weights,
                        only_loss=all(t.numel() == 1 or bool(t.isfinite().all()) for t in made),
                    )

    names = {
        module: canonical_name(f"{name}.").rstrip(".") or type(module).__name__
        for name, module in model.named_modules()
    }
    with unchanged(subject), contextlib.ExitStack() as hooks, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in model.modules():
            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        with torch.no_grad():
            runs = model if subject.loss_fn is None else subject.model
            run(runs, copy_of(subject.batch), subject.loss_fn)
    inputs = Inputs(model, subject.batch).fields if culprit or forward.finite is False else {}
    bad = [
        name
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not _is_usable(value)
    ]
    return Numerics(
        output_finite=forward.finite,
        supervised_tokens=forward.supervised_tokens,
        nonfinite_inputs=tuple(bad),
        nonfinite_weights=nonfinite_weights(model)[:8] if forward.finite is False else (),
        culprit=culprit,
        largest=largest,
        largest_at=largest_at,
        half=_is_half(model, subject.training_args),
    )


def _floats(value: Any, depth: int = 3) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and not value.is_meta:
            yield value
    elif isinstance(value, Mapping) and depth:
        for item in value.values():
            yield from _floats(item, depth - 1)
    elif isinstance(value, tuple | list) and depth:
        for item in value:
            yield from _floats(item, depth - 1)


def _is_usable(tensor: torch.Tensor) -> bool:
    """Finite, or minus infinity beside finite numbers or zeros, as in a mask."""
    return bool((tensor.isfinite() | (tensor == -torch.inf)).all())


def _is_half(model: nn.Module, training_args: Any) -> bool:
    asked = training_args.get if isinstance(training_args, Mapping) else None
    fp16 = asked("fp16") if asked else getattr(training_args, "fp16", False)
    precision = asked("precision") if asked else getattr(training_args, "precision", None)
    if fp16 is True or str(precision) in ("fp16", "float16", "16-mixed", "16"):
        return True
    return any(p.dtype == torch.float16 for p in model.parameters())
