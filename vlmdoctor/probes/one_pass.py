"""One forward pass that serves every probe that only has to look: observers listen to it side by side.

An observer is a file that defines `observer(subject, gather)`. What it attaches is guarded: one that raises
is silenced, its own evidence can't be had for that reason, and the pass and the others go on.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.plain_text import raised
from vlmdoctor.probes import forward_result
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.probes.listening import Listening, Observer, Outcome
from vlmdoctor.sandbox.call import run, seed
from vlmdoctor.sandbox.restore import copy_of, restoring
from vlmdoctor.subject import Subject

OBSERVERS = (
    "vlmdoctor.probes.numerics.activations",
    "vlmdoctor.probes.numerics.precision",
    "vlmdoctor.probes.positions.positions",
    "vlmdoctor.probes.positions.rotations",
    "vlmdoctor.probes.loss.terms",
    "vlmdoctor.probes.loss.alignment",
    "vlmdoctor.probes.images.features",
)


class OnePass:
    """The pass, made once for a check.

    Attributes:
        forward: The evidence of the plain pass itself.
    """

    def __init__(self, subject: Subject, gather: Gatherer) -> None:
        self._made: dict[str, Any] = {}
        observers = self._observers(subject, gather)
        outcome = Outcome()
        with restoring(subject):
            observable = innermost(subject.model) is subject.model
            if observable:
                outcome = self._listen(subject, observers, first=True)
            if not observable or outcome.error is not None:
                _forget(outcome)
                with restoring(subject):
                    # What counts is the pass that the run makes, with all that is around the model.
                    plain, _ = _attempt(subject, (), as_given=True)
                    self.forward = forward_result.read(subject, plain)
                    _forget(plain)
                if self.forward.failure is None:
                    self._listen_apart(subject, observers, together=not observable)

    def evidence(self, name: str) -> Any:
        """What the observer in the file `name` made; raises the reason why there is none."""
        made = self._made.get(name, Unavailable("the forward pass raises"))
        if isinstance(made, Exception):
            raise made
        return made

    def _observers(self, subject: Subject, gather: Gatherer) -> dict[str, Observer]:
        found = {}
        for name in OBSERVERS:
            try:
                found[name] = importlib.import_module(name).observer(subject, gather)
            except Exception as error:
                self._made[name] = _reason(error)
        return found

    def _listen(self, subject: Subject, observers: dict[str, Observer], *, first: bool = False) -> Outcome:
        """One pass with all of them; where it raises, nothing is concluded."""
        outcome, failed = _attempt(subject, observers.values())
        if outcome.error is None:
            if first:
                self.forward = forward_result.read(subject, outcome)
            for name, observer in observers.items():
                try:
                    if observer in failed:
                        raise failed[observer]
                    with torch.no_grad(), warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        self._made[name] = observer.conclude(outcome, self.forward)
                except Exception as error:
                    self._made[name] = _reason(error)
        return outcome

    def _listen_apart(self, subject: Subject, observers: dict[str, Observer], *, together: bool) -> None:
        """For models that fail while all listen: each has a pass of its own, `together` tried first."""
        groups = [observers] if together and len(observers) > 1 else [{n: o} for n, o in observers.items()]
        for group in groups:
            with restoring(subject):
                outcome = self._listen(subject, group)
            if outcome.error is None:
                continue
            reason = f"the forward pass raises {type(outcome.error).__name__} when it is observed"
            _forget(outcome)
            if len(group) > 1:
                self._listen_apart(subject, group, together=False)
            else:
                self._made |= dict.fromkeys(group, Unavailable(reason))


def observed(gather: Gatherer, name: str) -> Any:
    """The evidence of the observer in the file `name`, of the one pass of this check."""
    return gather.once(OnePass).evidence(name)


def _forget(outcome: Outcome) -> None:
    """Lets go of what the frames of a pass that raised hold, such as its tensors."""
    if outcome.error is not None:
        outcome.error.__traceback__ = outcome.error.__context__ = outcome.error.__cause__ = None
    outcome.loss = outcome.logits = None
    outcome.calls.clear()


def _reason(error: Exception) -> Unavailable:
    """What is kept of an exception: its frames would keep the pass's tensors alive."""
    if not isinstance(error, Unavailable):
        error = Unavailable(f"what was seen could not be read ({raised(error, 200)})")
    return error.without_frames()


def _attempt(
    subject: Subject, observers: Iterable[Observer], *, as_given: bool = False
) -> tuple[Outcome, dict[Any, Exception]]:
    """One pass in the mode that the model is in, and what its observers raised; use inside `restoring`.

    With `as_given` compilation and data-parallel wrappers stay around the model.
    """
    listening = Listening()
    for observer in observers:
        listening.attach(observer)
    model = subject.model if as_given or subject.loss_fn is not None else innermost(subject.model)
    outcome = Outcome()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seed(0)
        try:
            with listening.attached() as outcome.calls:
                outcome.loss, outcome.logits = run(model, copy_of(subject.batch), subject.loss_fn)
        except Unavailable:  # a loss function that can't be had outside of a run
            raise
        except Exception as error:
            outcome.error = error
    return outcome, listening.failed
