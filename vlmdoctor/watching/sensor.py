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

import torch
from torch import Tensor, nn

from vlmdoctor.evidence.steps import NonFinite, Step
from vlmdoctor.knowledge.named_parts import current
from vlmdoctor.sandbox import examining
from vlmdoctor.watching import nonfinite
from vlmdoctor.watching.gradients import Gradients
from vlmdoctor.watching.guarded import Undo, of_a_signal
from vlmdoctor.watching.hook import Hook, hook_forward, hook_optimizers, is_transformed
from vlmdoctor.watching.measure import Number
from vlmdoctor.watching.optimizers import OptimizerTracker, reference
from vlmdoctor.watching.passes import Passes
from vlmdoctor.watching.replay import ReplayInput, rng_states
from vlmdoctor.watching.sampling import EAGER_STEPS, Sampling, not_finite


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
        sampling: What is measured of the parameters.
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
        self._labels = current().labels
        self.passes = Passes(self._labels)
        self.listening = True
        self.held = OptimizerTracker(optimizers)
        self._model = weakref.ref(model)
        self._level = examining.level()
        self._every = every
        self._completed = 0
        self._listener = listener
        self._stepped: list[Callable[[], Any]] = []
        self._in_hook = self._in_step = self._replaying = False
        self._rng: list[Tensor] = []
        self._seen_nonfinite = False
        itself = weakref.ref(self)

        def backward_ended() -> None:
            if (sensor := itself()) is not None:
                sensor._after_backward()

        gradients = Gradients(self._guard, backward_ended)
        self.sampling = Sampling(model, self.held, scaler, gradients)
        self._undo, self._undo_optimizers = Undo(), Undo()
        self._undo.push(lambda: gradients.disarm())
        # With the model goes what there is to watch, although the watcher be held.
        self._ended = weakref.finalize(model, _finish, self._undo, self._undo_optimizers)
        self._ended.atexit = False
        try:
            self._attach(model)
            self._prepare()
        except BaseException:
            self.close()
            raise

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
        self.sampling.forget()
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
            with self.sampling.index.at_hand():
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
        if self.sampling.on_host or self.sampling.on:
            self._rng = rng_states(self.sampling.devices)  # a microsecond, no synchronisation

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._replaying or not module.training or not torch.is_grad_enabled():
            return
        self.passes.add(args, kwargs)
        sampled, on_host = self.sampling.on, self.sampling.on_host
        if not on_host and not sampled:
            return
        if sampled:
            self.passes.add_labels(args, kwargs)
        forward = ReplayInput(module, args, kwargs, self._rng)
        loss = self.passes.loss_in(output)
        if sampled and on_host:
            # To find where a gradient went wrong. An accelerator's memory is not ours.
            self.passes.keep(forward, loss)
        value = self.passes.read(loss)
        if value is not None and not math.isfinite(value):
            self._explain(nonfinite.explain_loss, forward, self._model(), self.step)

    def _after_backward(self) -> None:
        """Gradients are there: a pass that made good ones is not needed any more."""
        sampling = self.sampling
        kept = sampling.on and sampling.on_host and self.passes.last is not None
        if kept and not_finite(sampling.gradients.norms, ()):
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
        if not self.sampling.on:
            return
        norms = self.sampling.before(optimizer, first=first, closure=closure)
        # Now, while the weights are still those that made the gradients.
        if self.sampling.on_host and not self._seen_nonfinite and not self.sampling.skips:
            self._report_gradients(norms)

    def _report_gradients(self, norms: Mapping[int, Number]) -> None:
        if places := not_finite(norms, self.sampling.gradients.order):
            names = [self.sampling.index.names[place] for place in places]
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
            lr=self.held.learning_rate(on_host=self.sampling.on_host, sampled=self.sampling.on),
            images=self.passes.any_images,
        )
        sampled = self.sampling.measured
        if sampled:
            measured, norms = self.sampling.after(step, self.passes.supervised, first=not self._completed)
            self._report_gradients(norms)
            sampled = measured is not step
            step = measured
        self.step += 1
        self._completed += 1
        self._stepped = []
        self.passes.forget()
        self.passes = Passes(self._labels)
        self._prepare()
        self._listener.step(step, sampled)

    def _prepare(self) -> None:
        """Makes ready for the next step, sampled or not."""
        model = self._model()
        if model is None:
            self.close()
            return
        early = self._completed < EAGER_STEPS
        due = bool(self._every) and (early or self.step % self._every == 0)
        self.sampling.prepare(model, due=due, completed=self._completed)


def _finish(*undos: Undo) -> None:
    for undo in undos:
        undo.finish()
