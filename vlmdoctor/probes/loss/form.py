"""Reading off the gradient at the logits which tokens a loss is made of."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.loss_form import LossForm, Weights
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.passes import PassRunner
from vlmdoctor.sandbox.call import call, logits_in, loss_in, seed
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import copy_of, restoring
from vlmdoctor.subject import Subject

CHUNK = 256  # positions at a time: their probabilities take as much memory as their logits
SURE = 0.99  # a probability from which on a gradient is too small to read a weight off
SUMS_TO_ONE = 1e-3
MEANT = ("attention_mask", "position", "token_type", "pixel", "image", "rope", "cache", "mask")


def probe(subject: Subject, gather: Callable[[type], Any]) -> LossForm:
    """Runs the model twice, and backward through the loss alone; nothing of the model is changed."""
    passed(gather, loss=True, finite=True)
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    with restoring(subject):
        return read_form(subject)


def read_form(subject: Subject) -> LossForm:
    """The form of the loss on the user's batch; use inside `restoring`."""
    trials = PassRunner(subject)
    loss, logits, gradient = _run(subject, trials.model, subject.batch)
    if not gradient.numel():  # a head that is applied to the supervised tokens alone, and there are none
        raise Unavailable("no token's logits go into the loss")
    if not bool(gradient.isfinite().all()):
        raise Unavailable("the gradient at the logits holds NaN or infinity")
    (half,) = torch.autograd.grad(0.5 * loss, logits)
    largest = float(gradient.abs().max())
    scaled = float(half.abs().max()) / largest if largest else None
    value, logits, gradient = float(loss.detach()), _in_rows(logits), _in_rows(gradient)
    del loss, half  # their graph is not needed any more
    weights, sure = _weights(value, logits, gradient)
    masked, without = _without_a_row(subject, trials, weights)
    return LossForm(
        weights=weights,
        coarse=1e-2 if torch.finfo(gradient.dtype).eps < 1e-6 else 5e-2,
        positions=logits.shape[0] * logits.shape[1],
        labels=_labels(trials, logits),
        sure_of=sure,
        vocabulary=logits.shape[-1],
        probabilities=_are_probabilities(logits),
        weighted=_weighing(trials, logits.shape[0]),
        scaled=scaled,
        masked_row=masked,
        without=without,
    )


def _run(subject: Subject, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(the loss, the logits [B, T, V] that it is made from, its gradient there).

    Where a model applies its head to the supervised tokens only, they are [1, N, V].
    """
    heads = [
        m
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and role_of(canonical_name(n)) == "head"
    ]
    if heads:
        # A graph that begins behind the head takes far less memory.
        with contextlib.suppress(Unavailable), _frozen(model):
            return _passed(subject, model, batch, heads, begins=True)
    return _passed(subject, model, batch, heads, begins=False)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _passed(
    subject: Subject, model: nn.Module, batch: Any, heads: list[nn.Linear], *, begins: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `_run`; with `begins`, what a head puts out has no history."""

    def seen(module: nn.Module, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        # A copy, since some models write into their logits.
        put_out.append(out.detach().requires_grad_().clone() if begins else out)
        return put_out[-1]

    outputs: list[Any] = []
    put_out: list[torch.Tensor] = []
    seed(0)
    with contextlib.ExitStack() as hooks, torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooks.callback(model.register_forward_hook(lambda m, i, output: outputs.append(output)).remove)
        for head in heads:
            hooks.callback(head.register_forward_hook(seen).remove)
        batch = copy_of(batch)
        loss = loss_in(call(model, batch) if subject.loss_fn is None else subject.loss_fn(model, batch))
    if loss is None or not loss.requires_grad:
        raise Unavailable("the loss has no graph")
    if len(outputs) != 1:
        raise Unavailable("the loss is not made in one pass of the model")
    for candidates in ([_logits(outputs[0])], put_out):
        known = [logits for logits in candidates if logits is not None and logits.requires_grad]
        if not known:
            continue
        found = torch.autograd.grad(loss, known, retain_graph=True, allow_unused=True)
        used = [(logits, g) for logits, g in zip(known, found, strict=True) if g is not None]
        if len(used) == 1:
            return loss, *used[0]
    raise Unavailable("the loss is not made from logits that the model or its head puts out")


def _in_rows(out: torch.Tensor) -> torch.Tensor:
    """What a head put out, [N, V] or [B, T, V], as the latter."""
    return out.detach().reshape(-1, *out.shape[-2:])


def _logits(output: Any) -> torch.Tensor | None:
    logits = logits_in(output)
    if logits is None:
        values = [output] if isinstance(output, torch.Tensor) else output
        values = values if isinstance(values, tuple | list) else []
        found = [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point() and v.ndim == 3]
        logits = found[0] if len(found) == 1 else None
    return logits if logits is not None and logits.ndim == 3 and logits.is_floating_point() else None


def _weights(loss: float, logits: torch.Tensor, gradient: torch.Tensor) -> tuple[Weights, tuple[int, ...]]:
    """(the weights of the tokens, the rows that hold a prediction which is sure of itself)."""
    counted = gradient.abs().amax(dim=-1) > 0
    rows = tuple(int(n) for n in counted.sum(1))
    sure = tuple(int(r) for r in (_surest(logits) > SURE).any(dim=1).nonzero().flatten())
    places = counted.nonzero()
    if not len(places):
        return Weights(loss=loss, tokens=0, rows=rows), sure
    best: Weights | None = None
    for sign in (1.0, -1.0):
        each, apart = [], 0.0
        for chunk in places.split(CHUNK):
            row, column = chunk.unbind(1)
            g = sign * gradient[row, column].float()
            p = logits[row, column].float().softmax(-1)
            right = g.argmin(dim=-1, keepdim=True)
            room = 1 - p.gather(1, right)
            weight = -g.gather(1, right) / room.clamp(min=1e-12)
            off = (g - weight * p.scatter_add(1, right, -torch.ones_like(room))).abs().amax(1)
            known = room.squeeze(1) > 1 - SURE
            each += weight.squeeze(1)[known].tolist()
            relative = off / g.abs().amax(1)
            apart = max(apart, float(relative[known].max()) if bool(known.any()) else 0.0)
        if each and (best is None or apart < best.residual):
            light, heavy = min(map(abs, each)), max(map(abs, each))
            # Those that are too sure to be read count like the others.
            total = sign * math.fsum(each) * len(places) / len(each)
            best = Weights(
                loss=loss,
                tokens=len(places),
                rows=rows,
                total=total,
                lightest=light,
                heaviest=heavy,
                residual=apart,
            )
    return best or Weights(loss=loss, tokens=len(places), rows=rows, residual=math.inf), sure


def _surest(logits: torch.Tensor) -> torch.Tensor:
    """[B, T]: the largest probability of each position."""
    return torch.stack([(row.float().amax(-1) - row.float().logsumexp(-1)).exp() for row in logits])


def _are_probabilities(logits: torch.Tensor) -> bool:
    if logits.shape[-1] < 3 or float(logits.min()) < 0:
        return False
    sums = logits.float().sum(-1)
    return bool(((sums - 1).abs() < max(SUMS_TO_ONE, 4 * torch.finfo(logits.dtype).eps)).all())


def _labels(trials: PassRunner, logits: torch.Tensor) -> tuple[int, ...]:
    inputs = trials.inputs
    if inputs.labels is None or inputs.ids is None or inputs.reads_labels:
        return ()
    labels = inputs[inputs.labels]
    if labels.shape != inputs[inputs.ids].shape or labels.shape[0] != logits.shape[0]:
        return ()
    return tuple(int(n) for n in (labels[:, 1:] != IGNORE_INDEX).sum(1))


def _weighing(trials: PassRunner, rows: int) -> tuple[str, ...]:
    """Entries of the batch that may weigh its rows or tokens, or say what to divide by."""
    found = []
    for name, value in trials.inputs.fields.items():
        if name in (trials.inputs.ids, trials.inputs.labels, *trials.inputs.images):
            continue
        if any(part in name for part in MEANT) and "loss" not in name:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        tensor = (
            isinstance(value, torch.Tensor) and value.ndim <= 2 and value.shape[:1] in ((), (1,), (rows,))
        )
        if number or tensor:
            found.append(name)
    return tuple(found)


def _without_a_row(
    subject: Subject, trials: PassRunner, weights: Weights
) -> tuple[int | None, Weights | None]:
    """The weights once more with the labels of one row masked, where -100 is known to mask them."""
    inputs = trials.inputs
    if inputs.labels is None:
        return None, None
    labels = inputs.fields.get(inputs.labels)
    counting = [row for row, count in enumerate(weights.rows) if count]
    if labels is None or len(counting) < 2 or labels.ndim != 2 or labels.shape[0] != len(weights.rows):
        return None, None
    if not bool((labels == IGNORE_INDEX).any()):
        return None, None
    masked = labels.clone()
    masked[counting[-1]] = IGNORE_INDEX
    changed = inputs.with_(**{inputs.labels: masked})
    loss, logits, gradient = _run(subject, trials.model, changed)
    value = float(loss.detach())
    if not math.isfinite(value) or not bool(gradient.isfinite().all()):
        return counting[-1], Weights(loss=value, tokens=0, rows=())
    return counting[-1], _weights(value, _in_rows(logits), _in_rows(gradient))[0]
