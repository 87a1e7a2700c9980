"""What observers of one forward pass attach to, and what the pass gave."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from vlmdoctor.evidence.forward import Forward
from vlmdoctor.probes.loss.calls import LossCall, watched_losses


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
