"""A sampled step: what is measured of the parameters around it, from the end of backward on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmdoctor.evidence.steps import Step
from vlmdoctor.watching.gradients import Gradients
from vlmdoctor.watching.index import Index
from vlmdoctor.watching.measure import Number, on_host
from vlmdoctor.watching.movement import Movement
from vlmdoctor.watching.optimizers import OptimizerTracker, calling_scaler, reference
from vlmdoctor.watching.sample import Gathered
from vlmdoctor.watching.tracks import Tracks

EAGER_STEPS = 5  # sampled whatever `every` says: most faults show at once


class Sampling:
    """Measures the parameters in those steps that are sampled.

    Args:
        model: The model; it is not held.
        held: The optimizers.
        scaler: The gradient scaler; found where it calls the optimizer if it isn't given.
        gradients: The hooks that take gradient norms.

    Attributes:
        on: Whether the present step is sampled.
        index: The parameters.
        tracks: Their statistics.
        devices: Where they are.
        on_host: Whether all are on the host.
    """

    def __init__(self, model: nn.Module, held: OptimizerTracker, scaler: Any, gradients: Gradients) -> None:
        self.on = False
        self._flags: list[bool] = []
        self.gradients = gradients
        self._held = held
        self._scaler: Callable[[], Any] = reference(scaler) if scaler is not None else _nothing
        self._gathered = Gathered()
        self._residues = [0, 0]  # steps before whose backward the gradient was gone, and was left
        self._take_index(Index(model))
        self.tracks = Tracks(self.index.names)

    @property
    def accumulates_without_reset(self) -> bool | None:
        """Whether gradients pile up over optimizer steps; None before it was seen often enough."""
        gone, left = self._residues
        if gone:
            return False
        return True if left >= 2 else None

    @property
    def measured(self) -> bool:
        """Whether the present step was measured from before the optimizer changed anything."""
        return self.on and self._movement.pending

    @property
    def skips(self) -> bool:
        """Whether the optimizer will pass the present step over, by its scaler; waits for the device."""
        skipped = self._gathered.scalars.get("skipped")
        return skipped is not None and float(skipped) > 0

    def forget(self) -> None:
        """Gives up what was copied of the weights."""
        self._movement.forget()

    # Around the optimizer's step

    def before(self, optimizer: Any, *, first: bool, closure: bool) -> Mapping[int, Number]:
        """An optimizer is about to step.

        Args:
            optimizer: It.
            first: Whether it is the first of those that make the step together.
            closure: Whether it has yet to run backward.

        Returns:
            The norms of the gradients as backward left them.
        """
        if self.gradients.in_backward:
            raise RuntimeError("the optimizer steps inside backward, where gradients can't be followed")
        places = np.flatnonzero(self.index.trainable()).tolist()
        with torch.no_grad():
            if first:
                self._movement.before(places)
            if closure:
                return {}
            self._take_norms()
            self._gathered.after = self.gradients.measure(places)
            self._note_scale(optimizer)
        return self._gathered.norms

    def _take_norms(self) -> None:
        norms = self._gathered.norms
        norms.update(self.gradients.norms)
        if not norms:
            # No hook saw a backward: the gradients were put there in another way.
            norms.update(self.gradients.measure(np.flatnonzero(self.index.trainable()).tolist()))

    def _note_scale(self, optimizer: Any) -> None:
        scalars = self._gathered.scalars
        # A fused optimizer is handed the scale and divides by it itself; of others the scaler did.
        after, skipped = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        scaler = self._scaler()
        if scaler is None and self.tracks.sampled < EAGER_STEPS:
            scaler = calling_scaler()
            self._scaler = reference(scaler) if scaler is not None else _nothing
        scale = getattr(scaler, "_scale", None)
        for name, value in (("scale", after if scale is None else scale), ("scale_after", after)):
            if value is not None:
                scalars[name] = value.detach().reshape(())
        if skipped is not None:
            scalars["skipped"] = skipped.detach().reshape(())

    def after(self, step: Step, supervised: list[Tensor], *, first: bool) -> tuple[Step, dict[int, float]]:
        """Ends a step that was `measured`.

        Args:
            step: What is known of it without.
            supervised: Numbers of supervised labels.
            first: Whether it is the first step of all.

        Returns:
            `step` with what was measured, or `step` itself where the scaler skipped it; and gradient norms
            that were not read `before`.
        """
        gathered = self._gathered
        with torch.no_grad():
            self._take_norms()
            if self.gradients.residue is not None:
                gathered.scalars["residue"] = self.gradients.residue
            # What was unfrozen in between has no hook yet that would have seen its gradient.
            trainable = self.index.trainable() & np.array(self._flags, dtype=bool)
            gathered.supervised = supervised
            sample = gathered.read(self._movement.after(), self.index, trainable)
        if sample.skipped:
            return step, {}
        # Before the very first step there is nothing that could have been left.
        if self.gradients.residue_known and not first:
            self._residues[sample.facts.get("residue", 0.0) > 0] += 1
        self.tracks.add(
            step.step,
            sample.trainable,
            sample.grad_norms,
            sample.update_ratios,
            sample.changed_share,
            sample.has_gradient,
        )
        unread = {} if self.on_host else gathered.norms
        norms = dict(zip(unread, sample.grad_norms[list(unread)].tolist(), strict=True))
        return sample.completes(step, self.index), norms

    # Between steps

    def prepare(self, model: nn.Module, *, due: bool, completed: int) -> None:
        """Makes ready for the next step.

        Args:
            model: The model.
            due: Whether it is to be sampled.
            completed: How many steps were completed.
        """
        self._gathered = Gathered()
        tensors = self.index.tensors() if due else []
        exchanged = any(tensor is None for tensor in tensors)
        if due and (exchanged or self._held.changed() or _now_and_then(self.tracks.sampled)):
            index = Index(model)
            if index.ids != self.index.ids:
                self.gradients.disarm()
                self.on = False
                self._take_index(index)
                self.tracks.rename(index.names)
                tensors = index.tensors()
        self.gradients.clear()
        if due:
            self._note_devices(tensors)
        flags = [t is not None and t.requires_grad for t in tensors]
        # The first step can't know yet which parameter to look at for a gradient left over.
        if self.on and (flags != self._flags or not due or completed == 1):
            self.gradients.disarm()
            self.on = False
        if due and not self.on:
            self.gradients.arm(self.index, self._probe(tensors))
        self.on, self._flags = due, flags

    def _take_index(self, index: Index) -> None:
        self.index = index
        self._held.take_parameters(index.ids)
        self._movement = Movement(index.tensors)
        self._note_devices(index.tensors())
        self._flags = []

    def _note_devices(self, tensors: Sequence[Tensor | None]) -> None:
        self.devices = sorted({tensor.device for tensor in tensors if tensor is not None}, key=str)
        self.on_host = self.gradients.on_host = on_host(self.devices)

    def _probe(self, tensors: Sequence[Tensor | None]) -> int | None:
        """A parameter that an optimizer holds and that got an ordinary gradient in the last backward."""
        held = self._held.identities()
        for place in self.gradients.order:
            tensor = tensors[place] if place < len(tensors) else None
            if tensor is None or id(tensor) not in held:
                continue
            if tensor.grad is None or tensor.grad.layout is torch.strided:
                return place
        return None


def not_finite(norms: Mapping[int, Number], order: Sequence[int]) -> list[int]:
    """The places of the norms that are not finite, in the order in which they arrived."""
    found = [place for place, value in norms.items() if not math.isfinite(value)]
    rank = {place: rank for rank, place in enumerate(order)} if found else {}
    return sorted(found, key=lambda place: rank.get(place, len(rank)))


def _nothing() -> None:
    """Where there is no scaler."""


def _now_and_then(count: int) -> bool:
    """At doubling counts, and every 64."""
    return count & (count - 1) == 0 or count % 64 == 0
