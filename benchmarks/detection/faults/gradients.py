"""Where the gradient is lost: cut paths, dead parts, frozen parts, losses that lead nowhere."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.detection.case import Made
from benchmarks.detection.faults.plant import STRANGERS, alter, fault, graft

CUT = "no-gradient gradient-cut* GRAD2*"
IMAGE = "image-ignored image-cut-off image-has-no-influence IMG* GRAD2*"


@fault(
    "E03-tower-under-no-grad",
    families=f"llava internvl smolvlm paligemma nanovlm minivlm {STRANGERS}",
    rules=CUT,
    at="part:vision",
)
def tower_under_no_grad(made: Made) -> None:
    """The vision tower runs under torch.no_grad, though it is meant to learn."""

    made["vision"].register_forward_pre_hook(lambda module, args: torch.set_grad_enabled(False) and None)
    made["vision"].register_forward_hook(lambda module, args, out: torch.set_grad_enabled(True) and None)


@fault(
    "E02-features-detached",
    families=f"llava qwen2_5_vl gemma3 internvl nanovlm llava_scratch minivlm {STRANGERS}",
    rules=CUT,
    at="part:projector part:vision",
)
def features_detached(made: Made) -> None:
    """The projector's output goes on without its graph."""
    alter(made["projector"], Tensor.detach)


@fault(
    "X-features-through-numpy",
    families=f"llava smolvlm nanovlm {STRANGERS}",
    rules=CUT,
    at="part:projector",
)
def features_through_numpy(made: Made) -> None:
    """The features take a round trip through numpy."""
    alter(made["projector"], lambda out: torch.from_numpy(out.detach().numpy().copy()))


@fault(
    "X-detach-between-layers",
    families=f"llava internvl nanovlm minivlm llama {STRANGERS}",
    rules=CUT,
    at="layers.0 blocks.0 h.0 dec.0",
)
def detach_between_layers(made: Made) -> None:
    """The first decoder layer's output is detached."""
    layers = made["layers"] if made.parts else made.model.model.layers
    alter(layers[0], Tensor.detach)


@fault("X-argmax-in-the-path", families="llava qwen2_5_vl nanovlm", rules=CUT, at="part:projector")
def argmax_in_the_path(made: Made) -> None:
    """The features are turned into one-hot vectors by argmax."""
    alter(made["projector"], lambda out: F.one_hot(out.argmax(-1), out.shape[-1]).to(out.dtype))


@fault(
    "X-dead-relu-projector",
    families=f"llava smolvlm nanovlm minivlm {STRANGERS}",
    rules=f"{CUT} {IMAGE} dead*",
    at="part:projector",
)
def dead_relu(made: Made) -> None:
    """A ReLU behind the projector whose inputs are all negative."""
    alter(made["projector"], lambda out: F.relu(out - 100.0))


@fault(
    "X-features-overwritten",
    families=f"llava qwen2_5_vl internvl nanovlm {STRANGERS}",
    rules=f"{CUT} {IMAGE}",
    at="part:projector part:vision image",
)
def features_overwritten(made: Made) -> None:
    """The image features are replaced by zeros on their way into the text."""
    alter(made["projector"], torch.zeros_like)


@fault(
    "X-same-features-for-all",
    families=f"llava nanovlm minivlm {STRANGERS}",
    rules="MASK* IMG* sample* DATA*",
    at="",
)
def first_image_for_all(made: Made) -> None:
    """Every row gets the features of the first row's image."""
    alter(made["projector"], lambda out: out[:1].expand_as(out).contiguous())


@fault("E01-everything-frozen", families="llava qwen2_5_vl llama minivlm", rules="frozen-by-mistake", at="")
def everything_frozen(made: Made) -> None:
    """requires_grad is False everywhere."""
    made.model.requires_grad_(False)
    made.more["optimizer"] = torch.optim.AdamW(made.model.parameters(), lr=1e-3)


@fault(
    "E04-reentrant-behind-frozen-embeddings",
    families="llava qwen2_vl llama",
    rules=f"{CUT} backward-raises",
    at="layers",
)
def reentrant_checkpointing(made: Made) -> None:
    """Reentrant gradient checkpointing, and nothing in front of the layers requires gradients."""
    for part in ("vision", "projector", "embed"):
        (made[part] if made.parts else made.model.get_input_embeddings()).requires_grad_(False)
    layers = made["layers"] if made.parts else made.model.model.layers
    for layer in layers:
        graft(layer, _reentrant)


@fault(
    "E01-frozen-but-optimized",
    families="llava qwen2_5_vl nanovlm minivlm",
    rules="frozen-by-mistake",
    at="part:projector part:language",
)
def frozen_but_optimized(made: Made) -> None:
    """Projector and language model are frozen, and the optimizer holds them."""
    made["projector"].requires_grad_(False)
    made["language"].requires_grad_(False)
    made["head"].requires_grad_(False)
    made["embed"].requires_grad_(False)
    made.more["optimizer"] = torch.optim.AdamW(made.model.parameters(), lr=1e-3)


@fault("X-loss-rewrapped", families="llava nanovlm llama", rules=f"{CUT} backward-raises loss-cut*", at="")
def loss_rewrapped(made: Made) -> None:
    """The loss is made anew from its number: torch.tensor(loss.item(), requires_grad=True)."""
    loss = _loss_of(made)
    made.loss_fn = lambda model, batch: torch.tensor(loss(model, batch).item(), requires_grad=True)


@fault("X-loss-negative", families="llava nanovlm llama", rules="LOSS*", at="")
def loss_negative(made: Made) -> None:
    """The loss has the wrong sign."""
    loss = _loss_of(made)
    made.loss_fn = lambda model, batch: -loss(model, batch)


@fault("X-loss-summed", families="llava llama qwen2_5_vl", rules="initial-loss LOSS*", at="")
def loss_summed(made: Made) -> None:
    """The loss is the sum over tokens."""

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )

    made.loss_fn = loss_fn


@fault(
    "X-softmax-before-cross-entropy", families="llava nanovlm llama minivlm", rules="LOSS* softmax*", at=""
)
def softmax_before_cross_entropy(made: Made) -> None:
    """The head puts out probabilities, of which cross-entropy takes the softmax again."""
    head = made["head"] if made.parts else made.model.lm_head
    alter(head, lambda out: out.softmax(-1))


@fault("X-sigmoid-before-the-loss", families="llava llava_scratch gpt2", rules="LOSS* softmax*", at="")
def sigmoid_before_the_loss(made: Made) -> None:
    """The head puts out numbers between 0 and 1."""
    head = made["head"] if made.parts else made.model.lm_head
    alter(head, lambda out: out.sigmoid())


@fault("X-likelihood-of-logits", families="internvl llama", rules="LOSS* negative-loss", at="")
def likelihood_of_logits(made: Made) -> None:
    """nll_loss is given the logits, without log_softmax."""

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return F.nll_loss(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())

    made.loss_fn = loss_fn


@fault("X-hidden-labels-in-the-mean", families="smolvlm qwen3", rules="LOSS*", at="")
def hidden_labels_in_the_mean(made: Made) -> None:
    """The loss of each token, with zeros for the hidden ones, is averaged over all tokens."""

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
        ).mean()

    made.loss_fn = loss_fn


@fault(
    "X-second-tower-unused",
    families=f"llava nanovlm {STRANGERS}",
    rules="no-gradient unused*",
    at="extra_tower",
)
def second_tower(made: Made) -> None:
    """A large trainable branch that the forward pass does not use."""
    made.model.extra_tower = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))


@fault(
    "X-one-head-of-projector-scaled-away", families="llava internvl nanovlm", rules="IMG* GRAD2* NUM*", at=""
)
def features_scaled_away(made: Made) -> None:
    """The features are a billionth of what the text is."""
    alter(made["projector"], lambda out: out * 1e-9)


@fault("X-features-a-thousandfold", families="llava internvl nanovlm", rules="IMG* NUM* LOSS*", at="")
def features_a_thousandfold(made: Made) -> None:
    """The features are ten thousand times as large as the text's embeddings."""
    alter(made["projector"], lambda out: out * 1e4)


def _reentrant(original: Any, x: Tensor, **kwargs: Any) -> Any:
    return checkpoint(lambda x: original(x, **kwargs), x, use_reentrant=True)


def _loss_of(made: Made) -> Any:
    own = made.loss_fn
    return own if own is not None else lambda model, batch: model(**batch).loss
