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
from vlmdoctor.sandbox.signals import deliver

__all__ = ["Unchanged", "copy_of", "same_random_states", "unchanged", "unchanged_data", "unchanged_subject"]

Undo = Callable[[], Any]
RUN = ("model", "loss_fn")
DATA = ("train_dataset", "data_collator")
REST = ("batch", "optimizer", "lr_scheduler", *DATA)


def unchanged(what: Any, *, learns: bool = False) -> Unchanged:
    """Whatever happens inside to a model and its loss is undone afterwards, also after an exception.

    Undone is all that they lead to: tensors, gradients, hooks, attributes, containers, numpy arrays, generators
    of random numbers, positions of iterators and files, variables of functions, attributes of the user's
    classes; and the settings of the process. Gradients are set aside, so that inside every `.grad` is None;
    hooks that run after a gradient was accumulated (an optimizer may sit in one) do not run.

    Args:
        what: A Subject, of which the model and the loss are run, or a module.
        learns: Optimizer steps are taken inside: all weights are kept, however many, and out of the way.
    """
    roots = {"model": what} if isinstance(what, nn.Module) else {n: getattr(what, n, None) for n in RUN}
    return Unchanged(roots, learns=learns)


def unchanged_data(subject: Any) -> Unchanged:
    """As `unchanged`, for the dataset and the collator."""
    return Unchanged({name: getattr(subject, name, None) for name in DATA}, values=True)


def unchanged_subject(subject: Any) -> Unchanged:
    """As `unchanged`, for all that a Subject has; gradients stay where they are.

    The values of tensors that the model and the loss lead to are not kept: `unchanged` does that, where they
    are run.
    """
    roots = {name: getattr(subject, name, None) for name in (*RUN, *REST)}
    return Unchanged(roots, run_apart=True)


_open = threading.local()


class Unchanged:
    """What restores some objects when it is left; see `unchanged`.

    Restoring may be repeated, goes on past errors and raises the first at the end. What was entered later and
    not left, for instance since an exception came in between, is restored first.

    Attributes:
        not_kept: (where, why) of what can't be restored, or was not looked into.
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        *,
        learns: bool = False,
        values: bool = False,
        run_apart: bool = False,
    ) -> None:
        self.roots, self.learns = roots, learns
        self.run_apart, self.clears = run_apart, not (run_apart or values)
        self.not_kept: list[tuple[str, str]] = []
        self._undo: list[Undo] = []
        self._reach: Reach | None = None

    def __enter__(self) -> Unchanged:
        entered = _entered()
        entered.append(self)
        try:
            self._keep()
        except BaseException:
            self.restore()
            raise
        deliver()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        deliver()

    def reached(self) -> list[torch.Tensor]:
        """Every tensor that the objects lead to."""
        return [] if self._reach is None else list(self._reach.tensors.values())

    def _keep(self) -> None:
        """Each undo is there before its change is made. They are done in the reverse order."""
        push = self._undo.append
        self._undo += reversed(process.random_states())
        reach = self._reach = Reach(self._first_roots())
        own = set(reach.tensors)
        if self.run_apart:
            # What the model and the loss lead to first, so that it is known which tensors are theirs.
            first = set(own)
            reach.extend({name: self.roots[name] for name in self.roots if name not in RUN})
            own = set(reach.tensors) - first
        self.not_kept += [(shown(path), f"{why}: not looked into") for path, why in reach.left_out]
        for kind, source, path in reach.sources:
            undo = sources.keep(kind, source)
            if undo is None:
                self.not_kept.append((shown(path), f"an array of {source.nbytes / 2**20:,.0f} MiB"))
            else:
                push(undo)
        every = list(reach.tensors.values())
        tensors.set_gradients_aside(every, push, clear=self.clears)
        mine = [tensor for tensor in every if id(tensor) in own]
        if self.run_apart and sum(tensor.nbytes for tensor in mine) > tensors.KEPT_BYTES:
            mine = [tensor for tensor in mine if not _belongs_to_optimizer(tensor, self.roots)]
        kept = tensors.to_keep(mine, self.roots.get("model"), learns=self.learns)
        self._undo += reversed(tensors.keep_values(kept, learns=self.learns))
        if self.clears:
            push(lambda: tensors.free_gradients(every))
        push(lambda: _emptied(reach.empty))
        self._undo += [holder.restore for holder in reach.holders]
        self._undo += reversed(process.settings())
        self._put_twins(reach)

    def _first_roots(self) -> dict[str, Any]:
        return {name: one for name, one in self.roots.items() if not self.run_apart or name in RUN}

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


def _entered() -> list[Unchanged]:
    if not hasattr(_open, "entered"):
        _open.entered = []
    return _open.entered


def _emptied(containers: list[Any]) -> None:
    for one in containers:
        if one:
            one.clear()


def _belongs_to_optimizer(tensor: torch.Tensor, roots: Mapping[str, Any]) -> bool:
    return tensor.nbytes > 1 << 20 and roots.get("optimizer") is not None


@contextlib.contextmanager
def same_random_states() -> Iterator[None]:
    """The random states are afterwards what they were before, whatever is drawn inside."""
    undo = process.random_states()
    try:
        yield
    finally:
        for each in undo:
            each()
