"""How the loss is made of the logits: what it is divided by, which rows it sees, what goes backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.detection.case import Made
from benchmarks.detection.faults.plant import fault

IGNORED = -100


def made_of(made: Made, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Lets the loss be `loss(logits, labels)`, both of what is predicted."""
    ahead = "targets" in made.batch  # they are shifted by the collator

    def loss_fn(model: Any, batch: Any) -> Tensor:
        out = model(**{name: value for name, value in batch.items() if name not in ("labels", "targets")})
        logits = out[0] if isinstance(out, tuple) else out.logits
        if ahead:
            return loss(logits, batch["targets"])
        return loss(logits[:, :-1], batch["labels"][:, 1:])

    made.loss_fn = loss_fn


@fault("D17-mean-of-masked-tokens-too", families="llava qwen2_5_vl nanovlm llama", rules="LOSS*", at="")
def mean_behind_the_mask(made: Made) -> None:
    """The masked losses are set to zero and then averaged with the others."""
    made_of(made, lambda x, y: F.cross_entropy(x.transpose(1, 2), y, reduction="none").mean())


@fault("D17-mean-per-row-of-none", families="llava gemma3 nanovlm", rules="nan-without-an-answer", at="")
def mean_of_means(made: Made) -> None:
    """Each row's loss is divided by its own supervised tokens, which may be none."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(x.transpose(1, 2), y, reduction="none")
        return (each.sum(1) / (y != IGNORED).sum(1)).mean()

    made_of(made, loss)


@fault("X-first-row-alone", families="llava qwen2_vl nanovlm llama", rules="rows-not-in-loss", at="row")
def first_row_alone(made: Made) -> None:
    """The loss indexes where it should flatten: the first row alone is learned."""
    made_of(made, lambda x, y: F.cross_entropy(x[0], y[0]))


class _Fused(torch.autograd.Function):
    """A cross-entropy that makes its gradient in `forward`, as fused ones do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = F.cross_entropy(x.flatten(0, 1), y.flatten())
            (gradient,) = torch.autograd.grad(loss, x)
        ctx.save_for_backward(gradient)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return ctx.saved_tensors[0], None


@fault("X-gradient-made-in-forward", families="llava nanovlm", rules="gradient-not-scaled", at="")
def gradient_made_in_forward(made: Made) -> None:
    """A fused loss leaves out the multiplication by the gradient that comes in."""
    made_of(made, lambda x, y: _Fused.apply(x, y))


@fault(
    "D08-masked-labels-clamped", families="paligemma llava llama", rules="masked-labels-counted", at="labels"
)
def masked_labels_clamped(made: Made) -> None:
    """Labels of -100 are clamped at 0, and the prompt is to foretell token 0."""
    made_of(made, lambda x, y: F.cross_entropy(x.flatten(0, 1), y.clamp(min=0).flatten()))


@fault("X-reference-is-the-policy", families="llava qwen3", rules="loss-never-changes", at="")
def reference_is_the_policy(made: Made) -> None:
    """A preference loss takes the log-probabilities of its reference from the model that is trained."""

    def answer(model: Any, batch: Any) -> Tensor:
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        labels = batch["labels"][:, 1:]
        chosen = logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return (chosen * (labels != IGNORED)).sum(-1)

    def loss_fn(model: Any, batch: Any) -> Tensor:
        policy = answer(model, batch)
        with torch.no_grad():
            reference = answer(model, batch)
        better, worse = policy - reference
        return -F.logsigmoid(0.1 * (better - worse))

    made.loss_fn = loss_fn


@fault("X-decoder-fed-its-labels", families="vision-encoder-decoder", rules="label-leak", at="labels")
def decoder_fed_its_labels(made: Made) -> None:
    """The decoder reads the labels unshifted, and has only to copy them."""
    made.batch["decoder_input_ids"] = made.batch["labels"].clone()
