"""One forward pass that serves every probe that only has to look: observers listen to it side by side.

An observer is a file that defines `observer(subject, gather)`. What it attaches is guarded: one that raises
is silenced, its own evidence can't be had for that reason, and the pass and the others go on.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence import forward
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.loss_calls import LossCall, watched_losses
from vlmdoctor.evidence.trials import innermost
from vlmdoctor.invoke import run, seed
from vlmdoctor.unchanged import copy_of, unchanged

if TYPE_CHECKING:
    from vlmdoctor.engine import Gatherer
    from vlmdoctor.subject import Subject

OBSERVERS = (
    "vlmdoctor.evidence.activations",
    "vlmdoctor.evidence.precision_seen",
    "vlmdoctor.evidence.positions_seen",
    "vlmdoctor.evidence.rotations_followed",
    "vlmdoctor.evidence.loss_listening",
    "vlmdoctor.evidence.alignment_seen",
    "vlmdoctor.evidence.join_seen",
)


@dataclass
class Outcome:
    """What the pass gave, while its tensors are alive.

    Attributes:
        loss: A scalar, or None.
        logits: [B, T, V], or None.
        calls: The calls of torch's losses over classes, in their order.
        error: What it raised.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    calls: list[LossCall] = field(default_factory=list)
    error: Exception | None = None


class Observer(Protocol):
    """Listens to one pass and makes one kind of evidence of it."""

    def attach(self, listening: Listening) -> None:
        """Says what it wants to hear."""

    def conclude(self, outcome: Outcome, forward: Forward) -> Any:
        """The evidence; whatever it does to the model is undone. Raises `Unavailable` where there is none."""


class Listening:
    """What observers attach to: one pair of hooks on a module, however many observers listen.

    Attributes:
        busy: Whether an observer is at work: what it computes is no part of the pass.
        failed: By observer, what it raised.
    """

    def __init__(self) -> None:
        self.busy = False
        self.failed: dict[Any, Exception] = {}
        self._before: dict[nn.Module, list[tuple[Any, Callable[..., None]]]] = defaultdict(list)
        self._after: dict[nn.Module, list[tuple[Any, Callable[..., None]]]] = defaultdict(list)
        self._losses: list[tuple[Any, Callable[..., None]]] = []
        self._around: list[contextlib.AbstractContextManager[Any]] = []
        self._attaching: Any = None

    def attach(self, observer: Observer) -> None:
        """Lets the observer say what it wants to hear."""
        self._attaching = observer
        try:
            observer.attach(self)
        except Exception as error:
            self.failed[observer] = error

    def before(self, module: nn.Module, heard: Callable[..., None]) -> None:
        """`heard(module, args, kwargs)` is called as `module` begins."""
        self._before[module].append((self._attaching, heard))

    def after(self, module: nn.Module, heard: Callable[..., None]) -> None:
        """`heard(module, args, kwargs, output)` is called as it ends."""
        self._after[module].append((self._attaching, heard))

    def losses(self, heard: Callable[..., None]) -> None:
        """`heard(function, args, kwargs, result)` is called for each call of a loss function of torch."""
        self._losses.append((self._attaching, heard))

    def around(self, context: contextlib.AbstractContextManager[Any]) -> None:
        """The pass runs inside `context`."""
        self._around.append(context)

    @contextlib.contextmanager
    def attached(self) -> Iterator[list[LossCall]]:
        """Inside, all that was asked for is listened to."""
        with contextlib.ExitStack() as stack:
            for module in {**self._before, **self._after}:
                # In one hook each: what a hook costs is mostly its call.
                if module in self._before:
                    hook = self._hook(self._before[module])
                    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                if module in self._after:
                    hook = self._hook(self._after[module])
                    stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            calls = stack.enter_context(watched_losses(self._hook(self._losses)))
            for context in self._around:
                stack.enter_context(context)
            yield calls

    def _hook(self, listeners: Sequence[tuple[Any, Callable[..., None]]]) -> Callable[..., None]:
        def hook(*heard: Any) -> None:
            self.busy = True
            for observer, listener in listeners:
                if observer not in self.failed:
                    try:
                        listener(*heard)
                    except Exception as error:
                        self.failed[observer] = error
            self.busy = False

        return hook


class OnePass:
    """The pass, made once for a check.

    Attributes:
        forward: The evidence of the plain pass itself.
    """

    def __init__(self, subject: Subject, gather: Gatherer) -> None:
        self._made: dict[str, Any] = {}
        observers = self._observers(subject, gather)
        outcome = Outcome()
        with unchanged(subject):
            observable = innermost(subject.model) is subject.model
            if observable:
                outcome = self._listen(subject, observers, first=True)
            if not observable or outcome.error is not None:
                _forget(outcome)
                with unchanged(subject):
                    # What counts is the pass that the run makes, with all that is around the model.
                    plain, _ = _attempt(subject, (), as_given=True)
                    self.forward = forward.read(subject, plain)
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
                self.forward = forward.read(subject, outcome)
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
            with unchanged(subject):
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
        error = Unavailable(f"what was seen could not be read ({type(error).__name__}: {str(error)[:200]})")
    reason = error.with_traceback(None)
    reason.__cause__ = reason.__context__ = None
    return reason


def _attempt(
    subject: Subject, observers: Iterable[Observer], *, as_given: bool = False
) -> tuple[Outcome, dict[Any, Exception]]:
    """One pass in the mode that the model is in, and what its observers raised; use inside `unchanged`.

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
