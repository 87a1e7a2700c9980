"""Running the user's objects and leaving them bit for bit as they were."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn

from vlmdoctor.sandbox import process, sources, tensors
from vlmdoctor.sandbox.copies import copy_of
from vlmdoctor.sandbox.iterators import Refusing, twin_of
from vlmdoctor.sandbox.reach import Reach, shown
from vlmdoctor.sandbox.signals import Interruptions, deliver

__all__ = [
    "Restoring",
    "copy_of",
    "restoring",
    "restoring_data",
    "restoring_subject",
    "same_random_states",
]

Undo = Callable[[], Any]
RUN = ("model", "loss_fn")
DATA = ("train_dataset", "data_collator")
SMALL_BYTES = 1 << 20
REST = ("batch", "optimizer", "lr_scheduler", *DATA)


def restoring(what: Any, *, learns: bool = False) -> Restoring:
    """Whatever happens inside to a model and its loss is undone afterwards, also after an exception.

    Undone is all that they lead to: tensors, gradients, hooks, attributes, containers, numpy arrays,
    generators of random numbers, positions of iterators and files, variables of functions, attributes of the
    user's classes; and the settings of the process. Gradients are set aside: inside, every `.grad` is None;
    hooks that run after a gradient was accumulated (an optimizer may sit in one) do not run.

    Args:
        what: A Subject, of which the model and the loss are run, or a module.
        learns: Optimizer steps are taken inside: all weights are kept, however many, and out of the way.
    """
    roots = {"model": what} if isinstance(what, nn.Module) else {n: getattr(what, n, None) for n in RUN}
    return Restoring(roots, learns=learns)


def restoring_data(subject: Any) -> Restoring:
    """As `restoring`, for the dataset and the collator."""
    return Restoring({name: getattr(subject, name, None) for name in DATA}, clears=False)


def restoring_subject(subject: Any, *, values: bool = True) -> Restoring:
    """As `restoring`, for all that a Subject has; gradients stay where they are.

    The values of tensors that the model and the loss lead to are not kept: `restoring` does that, where they
    are run.

    Args:
        values: False where nothing is run at all: then the values of no tensor are kept.
    """
    roots = {name: getattr(subject, name, None) for name in (*RUN, *REST)}
    return Restoring(roots, keeps="others" if values else "none")


_open = threading.local()


class Restoring:
    """What restores some objects when it is left; see `restoring`. Signals are guarded inside.

    Restoring may be repeated, goes on past errors and raises the first at the end. What was entered later and
    not left, for instance since an exception came in between, is restored first.

    Args:
        roots: What is walked from, by name.
        learns: As in `restoring`.
        keeps: The values of which tensors: `all`, `others` than those of the model and the loss, or `none`.
        clears: Whether gradients are set aside.

    Attributes:
        not_kept: (where, why) of what can't be restored, or was not looked into.
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        *,
        learns: bool = False,
        keeps: str = "all",
        clears: bool = True,
    ) -> None:
        self.roots, self.learns = roots, learns
        self.keeps, self.clears = keeps, clears and keeps == "all"
        self.not_kept: list[tuple[str, str]] = []
        self._undo: list[Undo] = []
        self._signals = Interruptions()  # guarded from outside mostly: then this one does nothing
        self._reach: Reach | None = None
        self._reach_of_run: Reach | None = None

    def __enter__(self) -> Restoring:
        try:
            self._signals.__enter__()
            _entered().append(self)
            self._keep()
        except BaseException:
            self.close()
            raise
        deliver()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.restore()
        finally:
            self._signals.__exit__(kind, error, trace)
        deliver()

    def close(self) -> None:
        """Does once more what leaving has done: an exception may have come between any two instructions."""
        try:
            self.restore()
        finally:
            self._signals.close()

    def reached(self) -> list[torch.Tensor]:
        """Every tensor that the objects lead to."""
        return [] if self._reach is None else list(self._reach.tensors.values())

    def _keep(self) -> None:
        """Each undo is there before its change is made. They are done in the reverse order."""
        push = self._undo.append
        self._undo += reversed(process.random_states())
        # What is run comes first, so that it is known which tensors are theirs.
        reach = self._walked()
        run = set(reach.tensors)
        further = {name: self.roots[name] for name in self.roots if name not in RUN}
        if further:
            self._reach_of_run = reach.snapshot()
            reach.extend(further)
        self._reach = reach
        self.not_kept += [(shown(path), f"{why}: not looked into") for path, why in reach.left_out]
        for kind, source, path in reach.sources:
            undo = sources.keep(kind, source)
            if undo is None:
                self.not_kept.append((shown(path), f"an array of {source.nbytes / 2**20:,.0f} MiB"))
            else:
                push(undo)
        every = list(reach.tensors.values())
        tensors.set_gradients_aside(every, push, clear=self.clears)
        if self.keeps == "others":
            every = [tensor for tensor in every if id(tensor) not in run]
            if sum(tensor.nbytes for tensor in every) > tensors.KEPT_BYTES:
                # Optimizers are copied wherever one steps: their large tensors are not written to.
                every = [tensor for tensor in every if tensor.nbytes <= SMALL_BYTES]
        if self.keeps != "none":
            kept = tensors.to_keep(every, self.roots.get("model"), learns=self.learns)
            self._undo += reversed(tensors.keep_values(kept, self.roots.get("model"), learns=self.learns))
        if self.clears:
            push(lambda: tensors.free_gradients(every))
        push(lambda: _emptied(reach.empty))
        self._undo += [holder.restore for holder in reach.holders]
        self._undo += reversed(process.settings())
        self._put_twins(reach)

    def _walked(self) -> Reach:
        """What is run, walked; the walk of a keeper around this one serves again.

        It serves directly inside alone, where all that was done since was restored, and nothing has a twin.
        """
        roots = {name: self.roots[name] for name in RUN if name in self.roots}
        around = [one for one in _entered() if one is not self]
        walked = around[0]._reach_of_run if len(around) == 1 else None
        if walked is None or walked.moving:
            return Reach(roots)
        same = all(around[0].roots.get(name) is root for name, root in roots.items())
        return walked.snapshot() if same else Reach(roots)

    def _put_twins(self, reach: Reach) -> None:
        """A copy in the place of every iterator, and a refusal where there can be none."""
        twins: dict[int, Any] = {}
        for holder, place, one, path, what in reach.moving:
            if id(one) not in twins:
                twin = twin_of(one)
                if twin is None:
                    where = shown(path)
                    what = what or f"an iterator of type {type(one).__name__}"
                    self.not_kept.append((where, f"{what} can't be put back"))
                    twin = Refusing(f"it would move {where}: {what} can't be put back")
                twins[id(one)] = twin
            if holder is not None:
                with contextlib.suppress(Exception):  # it refuses to be written to: then it is only named
                    holder.put(place, twins[id(one)])

    def restore(self) -> None:
        """Puts everything back; does so any number of times."""
        entered = _entered()
        raised: list[BaseException] = []
        while self in entered and entered[-1] is not self:
            _insistently(entered[-1].restore, raised)
        for undo in reversed(self._undo):
            _insistently(undo, raised)
        while self in entered:
            entered.remove(self)
        if raised:
            raise raised[0]


def _insistently(undo: Undo, raised: list[BaseException]) -> None:
    """Does it once more where it was interrupted: nothing of it may be left out."""
    for _ in range(2):
        try:
            undo()
        except BaseException as error:
            raised.append(error)
        else:
            return


def _entered() -> list[Restoring]:
    if not hasattr(_open, "entered"):
        _open.entered = []
    return _open.entered


def _emptied(containers: list[Any]) -> None:
    for one in containers:
        if one:
            one.clear()


@contextlib.contextmanager
def same_random_states() -> Iterator[None]:
    """The random states are afterwards what they were before, whatever is drawn inside."""
    undo = process.random_states()
    try:
        yield
    finally:
        for each in undo:
            each()
