"""The user's model, batch and optimizer, mostly as a copy, on which repairs are tried and measured."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.plain_text import raised
from vlmdoctor.sandbox import call
from vlmdoctor.sandbox.clone import clone_together
from vlmdoctor.sandbox.restore import copy_of
from vlmdoctor.subject import Subject, optimizers
from vlmdoctor.watching.optimizers import innermost

# A copy and its gradients take as much memory again each: larger models are not tried.
LARGEST_BYTES = 4 << 30
STEPS = 8


@dataclass(frozen=True)
class Reached:
    """One forward and backward pass: (canonical names of) tensors with a gradient other than zero."""

    loss: float
    names: frozenset[str]


@dataclass(frozen=True)
class Trained:
    """A few optimizer steps: the loss before each of them, and which tensors had changed at the end."""

    losses: tuple[float, ...]
    moved: frozenset[str]

    @property
    def falls(self) -> bool:
        """Whether the loss came down by more than rounding: on one batch again and again it has to."""
        return self.losses[-1] < self.losses[0] - 1e-3 * abs(self.losses[0])


@dataclass
class Workbench:
    """What a repair may change, all of it; training on it changes it too.

    Attributes:
        model: The copied module, or the very one where a repair changes nothing of it.
        batch: The copied batch.
        optimizers: The copied optimizers, which hold the copied parameters.
        schedulers: The copied learning-rate schedulers.
        loss_fn: As in the Subject.
        around: Contexts that every forward pass runs in, for repairs of the way and not of the model.
    """

    model: nn.Module
    batch: Any
    optimizers: list[Any]
    schedulers: list[Any]
    loss_fn: Callable[[Any, Any], Any] | None
    around: list[Callable[[], AbstractContextManager[Any]]] = field(default_factory=list)

    def parameters(self, names: Collection[str] | None = None) -> dict[str, nn.Parameter]:
        """The parameters with these canonical names, or all."""
        every = {canonical_name(name): tensor for name, tensor in self.model.named_parameters()}
        return every if names is None else {name: every[name] for name in names if name in every}

    def loss(self) -> torch.Tensor:
        """The loss of the batch, with its graph."""
        with self.repaired_way():
            loss, _ = call.run(self.model, copy_of(self.batch), self.loss_fn)
        if loss is None:
            raise Unavailable("the model gives no loss for this batch")
        return loss

    def reached(self) -> Reached:
        """Which parameters get a gradient other than zero in one forward and backward pass."""
        parameters = self.parameters()
        for parameter in parameters.values():
            parameter.grad = None
        with torch.enable_grad():
            loss = self.loss()
            if loss.requires_grad:
                loss.backward()
        names = frozenset(n for n, p in parameters.items() if p.grad is not None and bool(_values(p).any()))
        for parameter in parameters.values():
            parameter.grad = None
        return Reached(float(loss.detach()), names)

    def trained(self, steps: int = STEPS) -> Trained:
        """Trains on the batch for several steps with the optimizers, as the trial of `check` does."""
        if not self.optimizers:
            raise Unavailable("no optimizer was given")
        parameters = self.parameters()
        before = {name: _fingerprint(parameter) for name, parameter in parameters.items()}
        self.model.train()
        losses = []
        with torch.enable_grad(), warnings.catch_warnings():
            # A copied scheduler does not know that its optimizer has stepped.
            warnings.simplefilter("ignore", UserWarning)
            for step in range(steps + 1):
                for optimizer in self.optimizers:
                    optimizer.zero_grad(set_to_none=True)
                loss = self.loss()
                losses.append(float(loss.detach()))
                if step == steps:
                    break
                if loss.requires_grad:
                    loss.backward()
                for each in (*self.optimizers, *self.schedulers):
                    each.step()
        moved = (name for name, p in parameters.items() if _fingerprint(p) != before[name])
        return Trained(tuple(losses), frozenset(moved))

    def add_to_optimizer(self, names: Collection[str]) -> int:
        """Adds those that no optimizer holds to the first one; returns how many it added."""
        held = {id(p) for o in self.optimizers for group in o.param_groups for p in group["params"]}
        added = [p for p in self.parameters(names).values() if id(p) not in held]
        if added and self.optimizers:
            rates = [float(group["lr"]) for group in self.optimizers[0].param_groups if "lr" in group]
            self.optimizers[0].add_param_group({"params": added, **({"lr": max(rates)} if rates else {})})
            self.schedulers.clear()  # they count the groups that were there when they were made
        return len(added) if self.optimizers else 0

    def subject(self, original: Subject) -> Subject:
        """What is on the bench as something to be examined like the original (inside `repaired_way`)."""
        own = {"model": self.model, "batch": self.batch}
        if self.model is not original.model:
            own |= {"optimizer": self.optimizers or None, "lr_scheduler": self.schedulers or None}
        return dataclasses.replace(original, **own)

    @contextmanager
    def repaired_way(self) -> Iterator[None]:
        """The contexts of `around`, all of them."""
        with ExitStack() as stack:
            for context in self.around:
                stack.enter_context(context())
            yield


def workbench_for(subject: Subject, *, copied: bool = True) -> Workbench:
    """What `subject` trains, copied; else the model itself without its optimizers, to be run and not changed.

    Raises:
        Unavailable: It is too large, has no weights, or refuses to be copied.
    """
    if subject.batch is None:
        raise Unavailable("no batch was given")
    tensors: Sequence[torch.Tensor] = [*subject.model.parameters(), *subject.model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise Unavailable("the model has no weights (it is on the meta device)")
    if not copied:
        return Workbench(subject.model, copy_of(subject.batch), [], [], subject.loss_fn)
    size = sum(tensor.nbytes for tensor in tensors)
    if size > LARGEST_BYTES:
        raise Unavailable(f"the model has {size / 2**30:.1f} GiB, too large for a copy")
    given = [innermost(optimizer) for optimizer in optimizers(subject.optimizer)]
    try:
        # Copied together, so that the optimizers' copies hold the copied model's parameters.
        model, own, schedulers = clone_together(subject.model, given, optimizers(subject.lr_scheduler))
    except Exception as error:
        raise Unavailable(f"the model can't be copied ({raised(error)})") from error
    bench = Workbench(model, copy_of(subject.batch), own, schedulers, subject.loss_fn)
    if subject.loss_fn is not None and not _is_used(bench):
        raise Unavailable("loss_fn does not run the given model, so no copy can be measured")
    return bench


def _is_used(bench: Workbench) -> bool:
    """Whether the loss is made with the copy at all: a loss_fn may hold on to the model that it knows."""
    called: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda m, _: called.append(m)) for m in bench.model.modules()]
    try:
        with torch.no_grad():
            bench.loss()
    finally:
        for handle in handles:
            handle.remove()
    return bool(called)


def _fingerprint(parameter: nn.Parameter) -> int:
    """The sum of its bits: a second copy to compare with would take as much memory again."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = parameter.detach().contiguous().view(-1).view(kinds[min(parameter.element_size(), 8)])
    return int(bits.sum(dtype=torch.int64))


def _values(parameter: nn.Parameter) -> torch.Tensor:
    gradient = parameter.grad
    assert gradient is not None
    return gradient.coalesce().values() if gradient.is_sparse else gradient
