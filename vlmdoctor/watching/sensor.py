"""The hooks on a model and its optimizers, and what they measure at each optimizer step.

A step is *sampled* or not. Unsampled steps cost a few Python calls and read nothing from an
accelerator. A sampled one takes gradient norms at the end of backward and a sample of the weights
around the optimizer's step, and copies all of it to the host once.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmdoctor.evidence.steps import NonFinite, Step
from vlmdoctor.sandbox import examining
from vlmdoctor.watching import nonfinite
from vlmdoctor.watching.guarded import Undo, of_a_signal
from vlmdoctor.watching.hook import Hook, hook_forward, hook_optimizers, is_transformed
from vlmdoctor.watching.index import Index
from vlmdoctor.watching.measure import Gradients, Movement, on_host, to_host
from vlmdoctor.watching.optimizers import OptimizerTracker, calling_scaler, reference
from vlmdoctor.watching.passes import Passes
from vlmdoctor.watching.replay import ReplayInput, rng_states
from vlmdoctor.watching.sample import Gathered
from vlmdoctor.watching.tracks import Tracks

EAGER_STEPS = 5  # sampled whatever `every` says: most faults show at once


@dataclass
class Listener:
    """Whom the sensor tells, from inside its hooks.

    Attributes:
        step: Gets each completed step, and whether it was sampled.
        nonfinite: Gets the first non-finite value.
        failed: Gets the error that ended the watching.
    """

    step: Callable[[Step, bool], None]
    nonfinite: Callable[[NonFinite], None]
    failed: Callable[[Exception], None]


class Sensor:
    """Watches one model. It holds neither that nor anything else of the user's: whoever keeps a watcher keeps
    only what was measured.

    Args:
        model: The model, wrapped or not.
        optimizers: Those known already; any other that steps on the model's parameters is found then.
        every: Sample every so many steps; 0 for never.
        scaler: The gradient scaler; found where it calls the optimizer if it isn't given.
        first_step: The number of the next step.
        listener: Whom to tell.

    Attributes:
        step: The number of the present step.
        passes: The training passes since the last optimizer step.
        index: The parameters.
        tracks: Their statistics.
        held: The optimizers and what they hold.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Any],
        *,
        every: int,
        scaler: Any,
        first_step: int,
        listener: Listener,
    ) -> None:
        self.step = first_step
        self.passes = Passes()
        self.listening = True
        self.held = OptimizerTracker(optimizers)
        self._model = weakref.ref(model)
        self._level = examining.level()
        self._every = every
        self._completed = 0
        self._scaler: Callable[[], Any] = reference(scaler) if scaler is not None else _nothing
        self._listener = listener
        self._stepped: list[Callable[[], Any]] = []
        self._in_hook = self._in_step = self._replaying = self._sampling = False
        self._rng: list[Tensor] = []
        self._gathered = Gathered()
        self._seen_nonfinite = False
        self._residues = [0, 0]  # steps before whose backward the gradient was gone, and was left
        itself = weakref.ref(self)
        self._gradients = Gradients(
            self._guard, lambda: None if (sensor := itself()) is None else sensor._after_backward()
        )
        self._flags: list[bool] = []
        self._take_index(Index(model))
        self.tracks = Tracks(self.index.names)
        self._undo, self._undo_optimizers = Undo(), Undo()
        self._undo.push(lambda: self._gradients.disarm())
        # With the model goes what there is to watch, although the watcher be held.
        self._ended = weakref.finalize(model, _finish, self._undo, self._undo_optimizers)
        self._ended.atexit = False
        try:
            self._attach(model)
            self._prepare()
        except BaseException:
            self.close()
            raise

    @property
    def accumulates_without_reset(self) -> bool | None:
        """Whether gradients pile up over optimizer steps; None before it was seen often enough."""
        gone, left = self._residues
        if gone:
            return False
        return True if left >= 2 else None

    def finish(self) -> None:
        """Ends a step in which one of several optimizers was still waited for."""
        if self._stepped and not self._in_step:
            self._guard(self._complete)()

    def close(self) -> None:
        """Removes every hook. While an optimizer is calling its hooks they can't be taken from under
        it: those do nothing from now on, and go with the next call of `close`."""
        self.listening = False
        try:
            self._undo.finish()
        finally:
            if not self._in_hook:
                self._undo_optimizers.finish()
                self._ended.detach()
        self._movement.forget()
        self.passes.forget()

    def _attach(self, model: nn.Module) -> None:
        root: Any = model
        # These call the module that they wrap, on the inputs of this process.
        while type(root).__name__ in ("DistributedDataParallel", "DataParallel"):
            root = root.module
        itself = weakref.ref(self)

        def before(optimizer: Any, args: Any, kwargs: Any) -> None:
            # First, so that nothing of it is left in a compiled step.
            if is_transformed() or (sensor := itself()) is None or not sensor._is_meant():
                return
            sensor._in_optimizer(sensor._before_step, optimizer, len(args) > 1 or bool(kwargs))

        def after(optimizer: Any, args: Any, kwargs: Any) -> None:
            if is_transformed() or (sensor := itself()) is None or not sensor._is_meant():
                return
            sensor._in_optimizer(sensor._after_step, optimizer)

        hook_forward(
            root,
            Hook(self._guard(self._before_forward)),
            Hook(self._guard(self._after_forward)),
            self._undo,
        )
        # torch's global hooks: they see every optimizer, wrapped, given or not, and a weak
        # reference keeps them from holding a model that nobody else needs.
        hook_optimizers(before, after, self._undo_optimizers)

    def _is_meant(self) -> bool:
        return self.listening and examining.level() == self._level

    def _guard(self, function: Callable[..., Any]) -> Callable[..., None]:
        """`function`, whose failure ends the watching and not the run."""

        def call(*args: Any) -> None:
            if self.listening:
                try:
                    function(*args)
                except Exception as error:
                    self._failed(error)

        return call

    def _in_optimizer(self, function: Callable[..., None], *args: Any) -> None:
        self._in_hook = True
        try:
            with self.index.at_hand():
                function(*args)
        except Exception as error:
            self._failed(error)
        finally:
            self._in_hook = False

    def _failed(self, error: Exception) -> None:
        """Ends the watching. What a signal handler raised is the run's own, and passes."""
        self.close()
        if of_a_signal(error):
            raise error
        self._listener.failed(error)

    # The forward pass

    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._replaying or not module.training:
            return
        if self._stepped and not self._in_step:
            self._complete()  # of the optimizers that were waited for not all step every time
        if self._on_host or self._sampling:
            self._rng = rng_states(self._devices)  # a microsecond, no synchronisation

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._replaying or not module.training or not torch.is_grad_enabled():
            return
        self.passes.add(args, kwargs)
        if not self._on_host and not self._sampling:
            return
        if self._sampling:
            self.passes.add_labels(args, kwargs)
        forward = ReplayInput(module, args, kwargs, self._rng)
        loss = self.passes.loss_in(output)
        if self._sampling and self._on_host:
            # To find where a gradient went wrong. An accelerator's memory is not ours.
            self.passes.keep(forward, loss)
        value = self.passes.read(loss)
        if value is not None and not math.isfinite(value):
            self._explain(nonfinite.explain_loss, forward, self._model(), self.step)

    def _after_backward(self) -> None:
        """Gradients are there: a pass that made good ones is not needed any more."""
        if self._sampling and self._on_host and self.passes.last is not None:
            values = list(self._gradients.norms.values())
            if values and not bool(torch.isfinite(torch.stack([v.float() for v in values]).sum())):
                self.passes.hold()

    def _explain(self, explain: Callable[..., NonFinite], *args: Any) -> None:
        if self._seen_nonfinite or self._model() is None:
            return
        self._seen_nonfinite = self._replaying = True
        try:
            event = explain(*args)
        finally:
            self._replaying = False
        self._listener.nonfinite(event)

    # The optimizer's step

    def _before_step(self, optimizer: Any, closure: bool) -> None:
        if not self.held.adopt(optimizer):
            return
        if any(optimizer is other() for other in self._stepped):
            self._complete()
        first = not self._stepped
        self._stepped.append(reference(optimizer))
        self._in_step = True
        if not self._sampling:
            return
        if self._gradients.in_backward:
            raise RuntimeError("the optimizer steps inside backward, where gradients can't be followed")
        places = np.flatnonzero(self.index.trainable()).tolist()
        with torch.no_grad():
            if first:
                self._movement.before(places)
            if not closure:  # it has yet to run backward
                self._take_norms()
                self._gathered.after = self._gradients.measure(places)
                self._note_scale(optimizer)
                if self._on_host:
                    self._check_gradients()

    def _take_norms(self) -> None:
        norms = self._gathered.norms
        norms.update(self._gradients.norms)
        if not norms:
            # No hook saw a backward: the gradients were put there in another way.
            norms.update(self._gradients.measure(np.flatnonzero(self.index.trainable()).tolist()))

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

    def _check_gradients(self) -> None:
        # Now, while the weights are still those that made the gradients.
        skipped = self._gathered.scalars.get("skipped")
        if self._seen_nonfinite or (skipped is not None and float(skipped) > 0):
            return
        norms = self._gathered.norms
        self._report_gradients(norms, to_host(list(norms.values())))

    def _report_gradients(self, places: Mapping[int, Any], values: Sequence[float]) -> None:
        spoiled = [place for place, value in zip(places, values, strict=True) if not math.isfinite(value)]
        if spoiled:
            rank = {place: rank for rank, place in enumerate(self._gradients.order)}
            spoiled.sort(key=lambda place: rank.get(place, len(rank)))
            names = [self.index.names[place] for place in spoiled]
            self._explain(nonfinite.explain_gradient, self.passes.last, self._model(), names, self.step)

    def _after_step(self, optimizer: Any) -> None:
        self._in_step = False
        if self.held.all_stepped(self._stepped):
            self._complete()

    def _complete(self) -> None:
        """Ends the present step, tells the listener, and makes ready for the next."""
        self.held.stepped(self._stepped)
        step = Step(
            step=self.step,
            loss=self.passes.loss,
            lr=self.held.learning_rate(on_host=self._on_host, sampled=self._sampling),
            images=self.passes.any_images,
        )
        sampled = self._sampling and bool(self._movement.pending)
        if sampled:
            measured = self._measure(step)
            sampled = measured is not step
            step = measured
        self.step += 1
        self._completed += 1
        self._stepped = []
        self.passes.forget()
        self.passes = Passes()
        self._gathered = Gathered()
        self._prepare()
        self._listener.step(step, sampled)

    def _measure(self, step: Step) -> Step:
        """`step` with what was measured, or `step` itself where the scaler skipped it."""
        gathered = self._gathered
        with torch.no_grad():
            self._take_norms()
            if self._gradients.residue is not None:
                gathered.scalars["residue"] = self._gradients.residue
            # What was unfrozen in between has no hook yet that would have seen its gradient.
            trainable = self.index.trainable() & np.array(self._flags, dtype=bool)
            gathered.supervised = self.passes.supervised
            reading = gathered.read(self._movement.after(), self.index, trainable)
        if reading.skipped:
            return step
        # Before the very first step there is nothing that could have been left.
        if self._gradients.residue_known and self._completed:
            self._residues[reading.facts.get("residue", 0.0) > 0] += 1
        if not self._on_host:
            self._report_gradients(gathered.norms, reading.grad_norms[list(gathered.norms)].tolist())
        self.tracks.add(
            step.step,
            reading.trainable,
            reading.grad_norms,
            reading.update_ratios,
            reading.changed_share,
            reading.has_gradient,
        )
        return reading.completes(step, self.index)

    # Between steps

    def _prepare(self) -> None:
        """Makes ready for the next step, sampled or not."""
        early = self._completed < EAGER_STEPS
        due = bool(self._every) and (early or self.step % self._every == 0)
        model = self._model()
        if model is None:
            self.close()
            return
        tensors = self.index.tensors() if due else []
        exchanged = any(tensor is None for tensor in tensors)
        if due and (exchanged or self.held.changed() or _now_and_then(self.tracks.sampled)):
            index = Index(model)
            if index.ids != self.index.ids:
                self._gradients.disarm()
                self._sampling = False
                self._take_index(index)
                self.tracks.rename(index.names)
                tensors = index.tensors()
        self._gradients.clear()
        if due:
            self._note_devices(tensors)
        flags = [t is not None and t.requires_grad for t in tensors]
        # The first step can't know yet which parameter to look at for a gradient left over.
        if self._sampling and (flags != self._flags or not due or self._completed == 1):
            self._gradients.disarm()
            self._sampling = False
        if due and not self._sampling:
            self._gradients.arm(self.index.tensors, self._probe(tensors))
        self._sampling, self._flags = due, flags

    def _take_index(self, index: Index) -> None:
        self.index = index
        self.held.take_parameters(index.ids)
        self._movement = Movement(index.tensors)
        self._note_devices(index.tensors())
        self._flags = []

    def _note_devices(self, tensors: Sequence[Tensor | None]) -> None:
        self._devices = sorted({tensor.device for tensor in tensors if tensor is not None}, key=str)
        self._on_host = on_host(self._devices)

    def _probe(self, tensors: Sequence[Tensor | None]) -> int | None:
        """A parameter that an optimizer holds and that got an ordinary gradient in the last backward."""
        held = self.held.identities()
        for place in self._gradients.order:
            tensor = tensors[place] if place < len(tensors) else None
            if tensor is None or id(tensor) not in held:
                continue
            if tensor.grad is None or tensor.grad.layout is torch.strided:
                return place
        return None


def _finish(*undos: Undo) -> None:
    for undo in undos:
        undo.finish()


def _nothing() -> None:
    """Where there is no scaler."""


def _now_and_then(count: int) -> bool:
    """At doubling counts, and every 64."""
    return count & (count - 1) == 0 or count % 64 == 0
