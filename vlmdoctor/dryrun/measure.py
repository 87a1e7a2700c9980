"""The bytes and operations of one step on one rank, under a plan."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlmdoctor.dryrun.meta_copy import meta_copy
from vlmdoctor.dryrun.ranks import blocks_of, local, ranks, sharded, without_weights
from vlmdoctor.dryrun.step import dry_step
from vlmdoctor.dryrun.unknown import ValueUnknown
from vlmdoctor.errors import Unavailable
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.plain_text import first_line

if TYPE_CHECKING:
    from vlmdoctor.dryrun.plan import Plan
    from vlmdoctor.evidence.shapes import Shapes
    from vlmdoctor.subject import Subject


@dataclass(frozen=True)
class StepCost:
    """What one step gave, for the one rank that has the most.

    Attributes:
        parameters: Bytes of what the rank holds between steps, buffers included.
        gradients: Bytes.
        buckets: Bytes that data parallelism holds besides: as large as all that is trainable.
        learning: Tensors without content, of the shapes and dtypes that the optimizer updates.
        saved: Bytes that are alive between forward and backward, without gathered weights.
        gathered: Bytes of weights that stay gathered from forward to backward.
        peak: The most that is alive at once beside `parameters` and `buckets`.
        peak_at: (phase, module, operator) of that moment.
        peak_parts: Those bytes by purpose (`Ledger.at_peak`).
        flops: Floating-point operations.
        blocks, largest_block: How many layers are sharded by themselves, and the bytes of the largest.
    """

    parameters: int
    gradients: int
    buckets: int
    learning: tuple[torch.Tensor, ...]
    saved: int
    gathered: int
    peak: int
    peak_at: tuple[str, str, str]
    flops: int
    blocks: int = 0
    largest_block: int = 0
    peak_parts: Mapping[str, int] = field(default_factory=dict)


def of_shapes(shapes: Shapes, model: nn.Module, plan: Plan) -> StepCost:
    """The same, where the step was already run: by `shapes_of`, of a model that is not sharded."""
    trainable = sum(p.nbytes for p in _abstract(model.parameters()))
    # Without a gradient there is no state either.
    unreached = set(shapes.without_gradient)
    learning = _abstract(p for n, p in model.named_parameters() if canonical_name(n) not in unreached)
    return StepCost(
        parameters=shapes.parameter_bytes + shapes.buffer_bytes,
        gradients=sum(p.nbytes for p in learning),
        buckets=trainable if plan.shard == "ddp" else 0,
        learning=learning,
        saved=shapes.saved_bytes,
        gathered=0,
        peak=shapes.peak_bytes,
        peak_at=shapes.peak_at,
        peak_parts=shapes.peak_parts,
        flops=shapes.flops_forward + shapes.flops_backward,
    )


def measure(subject: Subject, plan: Plan, batch: Any = None) -> StepCost:
    """Runs a step of the subject under the plan, on `batch` if that is given.

    Raises:
        Unavailable: The step can't be carried, or raises.
        UserError: The model can't be trained so.
    """
    batch = subject.batch if batch is None else batch
    try:
        try:
            return _under(subject, plan, batch)
        except ValueUnknown as error:
            try:
                return _under(subject, plan, batch, spread=True)
            except (Unavailable, ValueUnknown):
                raise error from None  # nobody knows whether the assumption is to blame
    except (ValueUnknown, NotImplementedError) as error:
        raise Unavailable(f"the dry run can't carry {first_line(error)}") from error


def _under(subject: Subject, plan: Plan, batch: Any, spread: bool = False) -> StepCost:
    from vlmdoctor.dryrun.plan import prepared

    twin = prepared(subject.model, plan)
    if twin is subject.model:
        twin = meta_copy(twin)
    if plan.shard != "fsdp2":
        return _measured(twin, plan, batch, subject.loss_fn, spread)
    assert plan.world_size is not None
    with ranks(plan.world_size) as mesh, without_weights():
        inner = blocks_of(twin)
        sizes = [sum(p.numel() * _gathered_size(p, plan) for p in block.parameters()) for block in inner]
        within = {id(p) for block in inner for p in block.parameters()}
        outside = sum(p.numel() * _gathered_size(p, plan) for p in twin.parameters() if id(p) not in within)
        sharded(twin, mesh, plan.autocast)
        return _measured(
            twin, plan, batch, subject.loss_fn, spread, outside, len(inner), max(sizes, default=0)
        )


def _measured(
    twin: nn.Module,
    plan: Plan,
    batch: Any,
    loss_fn: Any,
    spread: bool,
    outside: int = 0,
    blocks: int = 0,
    largest_block: int = 0,
) -> StepCost:
    trainable = sum(p.nbytes for p in _abstract(twin.parameters()))
    parameters = sum(local(p).nbytes for p in twin.parameters()) + sum(b.nbytes for b in twin.buffers())
    casting = None if plan.shard == "fsdp2" else plan.autocast
    with _quiet():
        done = dry_step(twin, batch, loss_fn, autocast=casting, spread=spread)
    if done.error is not None:
        raise Unavailable(f"the step raises {type(done.error).__name__}: {_line(done.error)}")
    learning = _abstract(p for p in twin.parameters() if p.grad is not None or not done.loss)
    return StepCost(
        parameters=parameters,
        gradients=sum(p.nbytes for p in learning),
        buckets=trainable if plan.shard == "ddp" else 0,
        learning=learning,
        saved=max(done.saved - outside, 0),
        gathered=outside,
        peak=done.peak,
        peak_at=done.peak_at,
        peak_parts=done.peak_parts,
        flops=done.flops_forward + done.flops_backward,
        blocks=blocks,
        largest_block=largest_block,
    )


def _abstract(parameters: Iterable[nn.Parameter]) -> tuple[torch.Tensor, ...]:
    """What this rank holds of those that learn, without content."""
    held = (local(p.detach()) for p in parameters if p.requires_grad)
    return tuple(torch.empty(p.shape, dtype=p.dtype, device="meta") for p in held)


def _gathered_size(parameter: torch.Tensor, plan: Plan) -> int:
    return plan.autocast.itemsize if plan.autocast is not None else parameter.element_size()


@contextlib.contextmanager
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _line(error: BaseException) -> str:
    return first_line(error)
