"""Losses that are made outside of the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.detection.case import Made
from benchmarks.detection.variants.registry import logits_of, variant

IGNORED = -100


@variant("llava", "qwen2_5_vl", "llama")
def summed_and_divided(made: Made) -> None:
    """A loss that is summed and then divided by the number of labels, as for accumulation."""

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        labels = batch["labels"][:, 1:]
        total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")
        return total / (labels != -100).sum()

    made.loss_fn = loss_fn


@variant("smolvlm", "gpt2")
def log_probabilities(made: Made) -> None:
    """log_softmax and nll_loss, the long way to cross-entropy."""

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return F.nll_loss(logits[:, :-1].flatten(0, 1).log_softmax(-1), batch["labels"][:, 1:].flatten())

    made.loss_fn = loss_fn


@variant("llava", "qwen3_vl", "llama")
def smoothed_labels(made: Made) -> None:
    """As the Trainer smooths them."""
    from transformers.trainer_pt_utils import LabelSmoother

    smoother = LabelSmoother(0.1)
    made.loss_fn = lambda model, batch: smoother(model(**batch), batch["labels"], shift_labels=True)


@variant("llava", "qwen3_vl")
def weighted_tokens(made: Made) -> None:
    """The last token of each answer counts twice."""

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        targets = batch["labels"][:, 1:]
        scores = logits_of(model, batch)[:, :-1].flatten(0, 1)
        each = F.cross_entropy(scores, targets.flatten(), reduction="none").view_as(targets)
        weights = (targets != IGNORED).float()
        weights[:, -1] *= 2
        return (each * weights).sum() / weights.sum()

    made.loss_fn = loss_fn


@variant("llava", "gemma3")
def mean_of_rows(made: Made) -> None:
    """Each row counts the same, however long its answer is."""

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        targets = batch["labels"][:, 1:]
        scores = logits_of(model, batch)[:, :-1].flatten(0, 1)
        each = F.cross_entropy(scores, targets.flatten(), reduction="none").view_as(targets)
        kept = targets != IGNORED
        return ((each * kept).sum(1) / kept.sum(1).clamp(min=1)).mean()

    made.loss_fn = loss_fn


@variant("qwen3_vl", "llama")
def large_logits_punished(made: Made) -> None:
    """The z-loss of PaLM."""

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        out = model(**batch)
        return out.loss + 1e-4 * out.logits.logsumexp(-1).square().mean()

    made.loss_fn = loss_fn


@variant("llava", "llama")
def head_in_pieces(made: Made) -> None:
    """The head runs on the supervised places alone, a few at a time, as fused losses do."""

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        given = {name: value for name, value in batch.items() if name != "labels"}
        targets = batch["labels"][:, 1:]
        kept = targets != IGNORED
        hidden = model.model(**given).last_hidden_state[:, :-1][kept]
        pairs = zip(hidden.split(4), targets[kept].split(4), strict=True)
        return sum(F.cross_entropy(model.lm_head(h), t, reduction="sum") for h, t in pairs) / kept.sum()

    made.loss_fn = loss_fn


@variant("llava", "qwen3_vl")
def taught_by_a_teacher(made: Made) -> None:
    """Half of the loss is the distance to another model's distribution."""
    teacher = copy.deepcopy(made.model).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        out = model(**batch)
        taught = teacher(**batch).logits.softmax(-1)
        apart = F.kl_div(out.logits.log_softmax(-1), taught, reduction="none").sum(-1).mean()
        return 0.5 * out.loss + 0.5 * apart

    made.loss_fn = loss_fn


@variant("llava", "gemma3", "llama")
def preferences(made: Made) -> None:
    """DPO: the first answer is better than the second, against a frozen copy."""
    reference = copy.deepcopy(made.model).eval().requires_grad_(False)

    def answers(model: nn.Module, batch: Any) -> torch.Tensor:
        targets = batch["labels"][:, 1:]
        scores = logits_of(model, batch)[:, :-1].log_softmax(-1)
        chosen = scores.gather(2, targets.clamp(min=0)[..., None])[..., 0]
        return (chosen * (targets != IGNORED)).sum(1)

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.no_grad():
            known = answers(reference, batch)
        better, worse = answers(model, batch) - known
        return -F.logsigmoid(0.1 * (better - worse))

    made.loss_fn = loss_fn


@variant("llava", "gemma3", "llama")
def words_under_masks(made: Made) -> None:
    """Masked diffusion (LLaDA-V): hidden words are named in place, and attention looks both ways."""
    ids, labels = made.batch["input_ids"], made.batch["labels"]
    hidden = labels != IGNORED
    hidden[:, ::2] = False
    made.batch["labels"] = ids.masked_fill(~hidden, IGNORED)
    made.batch["input_ids"] = ids.masked_fill(hidden, made.model.get_input_embeddings().num_embeddings - 1)
    made.batch["attention_mask"] = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1])

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(logits_of(model, batch).flatten(0, 1), batch["labels"].flatten())

    made.loss_fn = loss_fn


@variant("llava", "qwen3_vl")
def model_known_to_the_loss(made: Made) -> None:
    """The loss runs the model that it knows, and not the one that it is given."""
    known = made.model
    made.loss_fn = lambda model, batch: known(**batch).loss
