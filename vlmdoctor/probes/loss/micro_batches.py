"""Running a model on parts of a batch, with only what normalises over the batch in training mode."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.micro_batches import BatchNorm, MicroBatches
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.plain_text import raised, text_of
from vlmdoctor.probes.batch.rows import parts_of
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.passes import PassRunner, innermost
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.subject import Subject

SAME = 1e-3  # of the largest number: inputs that are no further apart are the same but for rounding
SECONDS = 8.0  # there are up to six passes
_ONE_ROW = "more than 1 value per channel"


def probe(subject: Subject, gather: Callable[[type], Any]) -> MicroBatches:
    """Runs the model on the batch and on up to four parts of it, and leaves it as it was."""
    passed(gather, loss=True, finite=True)
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    with restoring(subject):
        return compared(subject)


class _Watch:
    """Holds what normalisations make of the first part beside what they make of it in the whole batch."""

    def __init__(self, norms: dict[str, nn.Module]) -> None:
        self.norms = norms
        self.part: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.found: dict[str, BatchNorm] = {}
        self.running: str | None = None  # the one that raised, after an exception

    @contextlib.contextmanager
    def on(self, note: Callable[[str, torch.Tensor, torch.Tensor], None] | None = None) -> Iterator[None]:
        """Hooks on the normalisations that pass input and output to `note`."""
        with contextlib.ExitStack() as hooks:
            for name, module in self.norms.items():

                def before(_: nn.Module, __: Any, name: str = name) -> None:
                    self.running = name

                def after(_: nn.Module, given: tuple, output: torch.Tensor, name: str = name) -> None:
                    self.running = None
                    if note is not None:
                        note(name, given[0].detach(), output.detach())

                hooks.callback(module.register_forward_pre_hook(before).remove)
                hooks.callback(module.register_forward_hook(after).remove)
            yield

    def keep(self, name: str, given: torch.Tensor, made: torch.Tensor) -> None:
        """What was made in the first part."""
        self.part.setdefault(name, (given.clone(), made.clone()))

    def compare(self, name: str, given: torch.Tensor, made: torch.Tensor) -> None:
        """What was made in the whole batch, of which the first part comes first."""
        if name in self.found:
            return
        moved = 0.0
        own = self.part.get(name)
        if own is not None and own[0].shape[1:] == given.shape[1:] and len(own[0]) < len(given):
            same = _apart(given[: len(own[0])], own[0])
            moved = _apart(made[: len(own[1])], own[1]) if same < SAME else 0.0
        self.found[name] = BatchNorm(name=name, module_class=type(self.norms[name]).__name__, moved=moved)


def compared(subject: Subject) -> MicroBatches:
    """The batch and its parts, run; use inside `restoring`."""
    norms = _norms(subject)
    trials = PassRunner(subject, notes_types=True)
    for module in norms.values():
        module.training = True
    rows, parts = parts_of(trials.inputs, trials.model, subject)
    watch = _Watch(norms)
    losses: list[float] = []
    stopped_in = None
    for number, part in enumerate(parts):
        try:
            with watch.on(None if number else watch.keep):
                loss = trials.run(part).loss
        except Exception as error:
            if _ONE_ROW not in text_of(error) or watch.running is None:
                raise Unavailable(f"the batch can't be split: {raised(error, 120)}") from error
            stopped_in = watch.running
            break
        if loss is None:
            raise Unavailable("a part of the batch gives no loss")
        if trials.seconds > SECONDS:
            raise Unavailable(f"one forward pass takes {trials.seconds:.0f} s here")
        if math.isfinite(loss):  # a part without a label has none
            losses.append(loss)
    with watch.on(watch.compare):
        whole, again = trials.run().loss, trials.run().loss
    if whole is None or not math.isfinite(whole):
        raise Unavailable("the batch gives no loss in training mode")
    rounding = max(1e-3, 16 * trials.epsilon)
    if whole != again and abs(whole - again) > rounding * abs(whole):
        raise Unavailable("two passes over the same batch differ: the model draws numbers of its own")
    return MicroBatches(
        rows=rows,
        loss=whole,
        losses=() if stopped_in else tuple(losses),
        norms=tuple(watch.found.values()),
        raised=stopped_in,
        experts=trials.has_experts,
        rounding=rounding,
    )


def _norms(subject: Subject) -> dict[str, nn.Module]:
    """Those in training mode, as they are or as `train` makes them, by canonical name."""
    model = innermost(subject.model)
    if not model.training:
        model.train()
    return {
        canonical_name(f"{name}.").rstrip("."): module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.training
    }


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    scale = float(other.abs().max()) if other.numel() else 0.0
    return float((one - other).abs().max()) / scale if scale else 0.0
