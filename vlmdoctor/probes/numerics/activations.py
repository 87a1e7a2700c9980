"""Looking at every module's output in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from vlmdoctor.engine import Gatherer
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.numerics import Culprit, Numerics
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.probes.listening import Listening, Outcome
from vlmdoctor.probes.one_pass import observed
from vlmdoctor.subject import Subject
from vlmdoctor.watching.nonfinite import nonfinite_weights


def probe(subject: Subject, gather: Gatherer) -> Numerics:
    """Looks at what every module gives out in the one pass."""
    passed(gather)
    return observed(gather, "vlmdoctor.probes.numerics.activations")


def observer(subject: Subject, gather: Gatherer) -> Activations:
    """Looks at the outputs of all modules."""
    return Activations(subject)


class Activations:
    """The largest number that any module gives out, and the first module that makes NaN or infinity."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._model = innermost(subject.model)
        self._names = {
            module: canonical_name(f"{name}.").rstrip(".") or type(module).__name__
            for name, module in self._model.named_modules()
        }

    def attach(self, listening: Listening) -> None:
        """Asks for every module's output."""
        self._culprit: Culprit | None = None
        self._largest: tuple[float, str | None] = (0.0, None)
        for module in self._names:
            listening.after(module, self._look)

    def _look(self, module: nn.Module, given: tuple, keywords: dict[str, Any], output: Any) -> None:
        made = list(_floats(output))
        for tensor in made:
            peak = float(tensor.detach().abs().amax()) if tensor.numel() else 0.0
            # A comparison with infinity is false for NaN, too.
            if peak < float("inf"):
                # What is exactly the lowest number of its type is a mask.
                if peak > self._largest[0] and peak < torch.finfo(tensor.dtype).max:
                    self._largest = peak, self._names[module]
            elif self._culprit is None:
                self._suspect(module, [t for t in _floats((given, keywords)) if t.numel()], tensor, made)

    def _suspect(
        self, module: nn.Module, inputs: list[torch.Tensor], tensor: torch.Tensor, made: list[torch.Tensor]
    ) -> None:
        if not all(_is_usable(t) for t in inputs):
            return
        peaks = [float(t.detach().abs().amax()) for t in inputs]
        self._culprit = Culprit(
            name=self._names[module],
            module_class=type(module).__name__,
            dtype=str(tensor.dtype).removeprefix("torch."),
            largest_input=max((peak for peak in peaks if peak < float("inf")), default=None),
            weights_finite=all(bool(p.isfinite().all()) for p in module.parameters()),
            only_loss=all(t.numel() == 1 or bool(t.isfinite().all()) for t in made),
        )

    def conclude(self, outcome: Outcome, forward: Forward) -> Numerics:
        """What was seen, and which inputs and weights are not finite to begin with."""
        subject, model = self._subject, self._model
        inputs = Inputs(model, subject.batch).fields if self._culprit or forward.finite is False else {}
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
            culprit=self._culprit,
            largest=self._largest[0],
            largest_at=self._largest[1],
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
