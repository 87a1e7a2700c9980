"""`vlmdoctor.uses_images`: one loader, three kinds of images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable, UserError
from vlmdoctor.image_use.exchange import blank, shuffled
from vlmdoctor.image_use.result import KINDS, ImageUse, Measured
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.knowledge.named_parts import naming
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.sandbox.call import call, logits_in, loss_in, moved, seed
from vlmdoctor.sandbox.copies import copy_of
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.statements import statements
from vlmdoctor.subject import Subject

Metric = Callable[[nn.Module, Any], Any]


def uses_images(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss_fn: Callable[[nn.Module, Any], Any] | None = None,
    metric: Metric | None = None,
    batches: int | None = None,
    labels_name: str | None = None,
) -> ImageUse:
    """Whether `model` uses its images: loss and accuracy with the right, shuffled and blank images.

    A falling loss proves nothing: from the text alone a model learns which answers are frequent. Each sample
    is compared with itself, so that a few dozen samples are enough. The model is run in evaluation mode
    without gradients, and is afterwards as it was; so are the random states.

    Args:
        model: The model.
        loader: Batches as the model is called with, with two samples at least each: a DataLoader, a list, or
            an iterator, of which the batches are used up. Tensors are moved to the model's device.
        loss_fn: `loss_fn(model, batch) -> Tensor`; by default the output's loss.
        metric: `metric(model, batch) -> float`, or a tensor [B] with one number for each sample; higher is
            better. By default the share of supervised tokens that are the likeliest.
        batches: How many batches at most; by default all.
        labels_name: What the batch calls its labels; by default that is measured.

    Returns:
        The numbers, whether the images are used, `str()` and `plot()`.

    Raises:
        UserError: There are no batches, no images in them, or neither a loss nor a score.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"uses_images() needs a torch.nn.Module, not {type(model).__name__}.")
    if batches is not None and (not isinstance(batches, int) or batches < 1):
        raise UserError(f"batches is {batches!r}; it must be a number from 1 on, or None for all.")
    gathered = _Scores()
    subject = Subject(model, loss_fn=loss_fn, labels_name=labels_name)
    with naming(statements(subject)), restoring(subject), torch.no_grad():
        model.eval()
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        for batch in _batches(loader, batches):
            _compare(model, moved(batch, device), loss_fn, metric, gathered)
    return gathered.result("accuracy" if metric is None else getattr(metric, "__name__", "metric"))


def _batches(loader: Iterable[Any], most: int | None) -> Iterator[Any]:
    try:
        iterator = iter(loader)
    except TypeError:
        raise UserError(f"uses_images() needs batches to go through, not {type(loader).__name__}.") from None
    empty = True
    for batch in itertools.islice(iterator, most):
        empty = False
        yield batch
    if empty:
        raise UserError("the loader gives no batch.")


def _compare(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[..., Any] | None,
    metric: Metric | None,
    gathered: _Scores,
) -> None:
    inputs = Inputs(model, batch, apart=loss_fn is not None)
    if not inputs.images:
        raise UserError("the batches hold no images, or none that are known as such by name or by shape.")
    rows = _rows(inputs)
    variants: dict[str, Any] = {"right": batch, "blank": blank(inputs)}
    try:
        variants["shuffled"] = shuffled(inputs, rows)
    except Unavailable as reason:
        gathered.not_tried["shuffled"] = str(reason)
    scores = {}
    for kind in KINDS:
        if kind in variants:
            seed(0)  # a model that draws numbers draws the same ones each time
            scores[kind] = _score(model, copy_of(variants[kind]), inputs, loss_fn, metric, rows)
    if scores["right"] == (None, None):
        raise UserError("the model gives neither a loss nor logits for a batch; give loss_fn or metric.")
    gathered.add(scores, rows)


def _rows(inputs: Inputs) -> int:
    if inputs.ids is not None:
        return len(inputs[inputs.ids])
    tensors = (value for value in inputs.fields.values() if isinstance(value, torch.Tensor) and value.ndim)
    return len(next(tensors, torch.empty(1)))


Score = tuple[list[float] | None, list[float] | None]


def _score(
    model: nn.Module,
    batch: Any,
    inputs: Inputs,
    loss_fn: Callable[..., Any] | None,
    metric: Metric | None,
    rows: int,
) -> Score:
    """(loss, accuracy), each with a number for every sample, or with one for the whole batch."""
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda module, given, output: outputs.append(output))
    try:
        loss = loss_in(call(model, batch) if loss_fn is None else loss_fn(model, batch))
    finally:
        handle.remove()
    logits = logits_in(outputs[-1]) if outputs else None
    losses = None if loss is None else [float(loss)]
    accuracy = None
    if logits is not None and (own := _by_sample(logits, inputs)) is not None:
        by_sample, accuracy, mean = own
        # The model's own loss decides where it is another one: label smoothing, auxiliary terms.
        if loss is None or math.isclose(mean, float(loss), rel_tol=1e-3, abs_tol=1e-5):
            losses = by_sample
    if metric is not None:
        accuracy = _metric_of(metric(model, batch), rows)
    return losses, accuracy


def _aligned(logits: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(logits [B, T, V], what each predicts [B, T], IGNORE_INDEX for nothing); None where not known."""
    if inputs.labels is None or inputs.ids is None or logits.ndim != 3:
        return None
    labels, where = inputs[inputs.labels], inputs.predicting()
    front = logits.shape[1] - labels.shape[1]
    if where is None or front < 0:
        return None
    ids = inputs[inputs.ids]
    targets = torch.full_like(ids, IGNORE_INDEX)
    targets[:, :-1] = ids[:, 1:]
    return logits[:, front:], targets.masked_fill(~where, IGNORE_INDEX)


def _by_sample(logits: torch.Tensor, inputs: Inputs) -> tuple[list[float], list[float], float] | None:
    """Mean loss and share of right tokens of each supervised sample, and the mean loss over tokens."""
    aligned = _aligned(logits, inputs)
    if aligned is None:
        return None
    own, targets = aligned
    known = targets != IGNORE_INDEX
    losses = nn.functional.cross_entropy(
        own.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    ).view(targets.shape)
    counts = known.sum(dim=1)
    has = counts > 0
    loss = losses.sum(dim=1)[has] / counts[has]
    right = ((own.argmax(-1) == targets) & known).sum(dim=1)[has] / counts[has]
    return loss.tolist(), right.tolist(), float(losses.sum() / counts.sum().clamp(min=1))


def _metric_of(value: Any, rows: int) -> list[float]:
    if isinstance(value, torch.Tensor) and value.ndim == 1 and len(value) == rows:
        return [float(one) for one in value]
    try:
        return [float(value)]
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"metric returned an object of type {type(value).__name__}; it should return a number, or a "
            "tensor with one number for each sample."
        ) from None


class _Scores:
    """The scores of all batches, so that each sample is compared with itself."""

    def __init__(self) -> None:
        self.samples = 0
        self.not_tried: dict[str, str] = {}
        self._kept: list[Mapping[str, Score]] = []

    def add(self, scores: Mapping[str, Score], rows: int) -> None:
        self.samples += rows
        self._kept.append(scores)

    def result(self, metric: str) -> ImageUse:
        kinds = [kind for kind in KINDS if all(kind in scores for scores in self._kept)]
        not_tried = {kind: why for kind, why in self.not_tried.items() if kind not in kinds}
        measured = [self._measured(kind) for kind in kinds]
        return ImageUse(measured=tuple(measured), samples=self.samples, metric=metric, not_tried=not_tried)

    def _measured(self, kind: str) -> Measured:
        loss, loss_error = self._paired(kind, 0)
        accuracy, accuracy_error = self._paired(kind, 1)
        return Measured(
            images=kind, loss=loss, accuracy=accuracy, loss_error=loss_error, accuracy_error=accuracy_error
        )

    def _paired(self, kind: str, which: int) -> tuple[float | None, float | None]:
        """(mean, standard error of the difference to the right images) over samples, or over batches."""
        own = [value for scores in self._kept for value in scores[kind][which] or ()]
        right = [value for scores in self._kept for value in scores["right"][which] or ()]
        if not own or len(own) != len(right):
            return None, None
        mean = sum(own) / len(own)
        if kind == "right":
            return mean, None
        apart = [a - b for a, b in zip(own, right, strict=True)]
        if len(apart) < 2:
            return mean, 0.0 if apart[0] == 0 else None
        middle = sum(apart) / len(apart)
        variance = sum((one - middle) ** 2 for one in apart) / (len(apart) - 1)
        return mean, math.sqrt(variance / len(apart))
