"""A training step without weights: what fits together, what gets a gradient, what it will cost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from vlmdoctor.dryrun.meta_copy import meta_copy
from vlmdoctor.dryrun.named import clashes_of
from vlmdoctor.dryrun.step import dry_step
from vlmdoctor.dryrun.table import folded
from vlmdoctor.dryrun.unknown import ValueUnknown
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.shapes import DEPTH, FOR_DRY_RUNS, Shapes
from vlmdoctor.knowledge.config_fields import POSITIONS, field, image_token, text_config
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.plain_text import first_line
from vlmdoctor.probes.failure.traceback import failure_of
from vlmdoctor.subject import Subject
from vlmdoctor.watching.batch import count_images


def probe(subject: Subject, gather: Callable[[type], Any]) -> Shapes:
    """Runs one step on a twin of the model that has no weights."""
    if subject.model is None:
        raise Unavailable("no model was given")
    if subject.batch is None:
        raise Unavailable("no batch was given")
    if getattr(gather, "depth", DEPTH) != DEPTH:
        raise Unavailable(FOR_DRY_RUNS)
    return shapes_of(subject.model, subject.batch, subject.loss_fn)


def shapes_of(
    model: Any,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    *,
    dtype: Any = None,
    device: str = "cuda",
    autocast: Any = None,
) -> Shapes:
    """One step of `model` on `batch` without weights.

    Args:
        dtype: Of the weights; None: their own.
        device: Whose attention kernels, and whose autocast.
        autocast: The lower precision of autocast; None without.
    """
    import time
    import warnings

    def run(spread: bool) -> tuple[Any, Any]:
        twin = meta_copy(model, dtype)
        # The model's own remarks belong to its real runs.
        with warnings.catch_warnings(), _untouched(model):
            warnings.simplefilter("ignore")
            return twin, dry_step(twin, batch, loss_fn, device=device, autocast=autocast, spread=spread)

    started, spread = time.perf_counter(), False
    try:
        try:
            twin, step = run(spread)
        except ValueUnknown as error:
            spread = True
            try:
                twin, step = run(spread)
            except ValueUnknown:
                raise error from None
            if step.error is not None:
                raise error from step.error  # nobody knows whether the assumption is to blame
    except ValueUnknown as error:
        raise Unavailable(f"the dry run can't carry {first_line(error)}") from error
    except NotImplementedError as error:
        raise Unavailable(f"the dry run can't carry an operator: {first_line(error)}") from error
    failure = None if step.error is None else failure_of(step.error, twin)
    if isinstance(step.error, NotImplementedError):
        raise Unavailable(f"the dry run can't carry an operator: {first_line(step.error)}")
    tensors = dict(twin.named_parameters())
    learning = {name: p for name, p in tensors.items() if p.requires_grad}
    reached = step.reached
    rows, length = _size_of(batch)
    config = getattr(model, "config", None)
    return Shapes(
        failure=failure,
        phase=step.phase,
        clashes=() if failure is None else clashes_of(failure, config),
        loss=step.loss,
        without_gradient=tuple(
            canonical_name(name)
            for name in learning
            if step.loss and failure is None and canonical_name(name) not in reached
        ),
        modules=folded(twin, step),
        parameter_bytes=sum(p.nbytes for p in tensors.values()),
        buffer_bytes=sum(b.nbytes for b in twin.buffers()),
        gradient_bytes=sum(p.nbytes for p in learning.values()),
        trainable=sum(p.numel() for p in learning.values()),
        parameters=sum(p.numel() for p in tensors.values()),
        saved_bytes=step.saved,
        peak_bytes=step.peak,
        peak_at=step.peak_at,
        peak_parts=step.peak_parts,
        flops_forward=step.flops_forward,
        flops_backward=step.flops_backward,
        batch_size=rows,
        tokens=length,
        image_tokens=_image_tokens(batch, config),
        images=count_images((batch,), {}),
        context=_context(config),
        dtype=str(next(iter(tensors.values())).dtype if tensors else torch.float32).removeprefix("torch."),
        seconds=time.perf_counter() - started,
        spread=spread,
    )


@contextlib.contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Gradients stay what they are; raises `Unavailable` where the step of a twin reached the model itself.

    A compiled or otherwise wrapped `forward` is a function of the original, and a copy calls the original.
    """
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        reached = [(parameter, grad) for parameter, grad in before if parameter.grad is not grad]
        for parameter, grad in reached:
            parameter.grad = grad
    if reached:
        raise Unavailable("the dry run can't carry a forward that belongs to another object than the model")


def _size_of(batch: Any) -> tuple[int | None, int | None]:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if ids is None or getattr(ids, "ndim", 0) != 2:
        return None, None
    return int(ids.shape[0]), int(ids.shape[1])


def _image_tokens(batch: Any, config: Any) -> int | None:
    token = None if config is None else image_token(config)
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if token is None or ids is None or getattr(ids, "ndim", 0) != 2 or ids.is_meta:
        return None
    return int((ids[0] == token).sum())


def _context(config: Any) -> int | None:
    found = None if config is None else field(text_config(config), *POSITIONS)
    return int(found) if isinstance(found, int) and found > 0 else None
