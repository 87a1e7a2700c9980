"""Faults of models that strangers write: batches as tuples, names of their own, losses in the trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.case import Made
from benchmarks.detection.faults.plant import fault, graft
from benchmarks.detection.handwritten.hf_wrapper import IMAGE

LABELS = "labels-not-shifted labels-shifted-twice LOSS3* nothing-supervised"


@fault(
    "D02-every-target-is-minus-one", families="nanogpt_images", rules="nothing-supervised", at="[1] targets"
)
def every_target_masked(made: Made) -> None:
    """All targets are -1, which the loss leaves out."""
    made.batch[1].fill_(-1)


@fault("X-targets-are-the-inputs", families="nanogpt_images", rules=LABELS, at="[1] targets")
def targets_are_the_inputs(made: Made) -> None:
    """The targets of a tuple are its ids, and nobody shifts them."""
    idx, targets, _ = made.batch
    targets.copy_(idx.masked_fill(targets == -1, -1))


@fault("D14-targets-two-ahead", families="nanogpt_images", rules=LABELS, at="[1] targets")
def targets_two_ahead(made: Made) -> None:
    """The targets of a tuple are two tokens ahead."""
    targets = made.batch[1]
    targets[:, :-1] = targets[:, 1:].clone()
    targets[:, -1] = -1


@fault("A08-tril-is-all-ones", families="nanogpt_images", rules="MASK*", at="")
def tril_of_ones(made: Made) -> None:
    """The mask that attention keeps as a buffer hides nothing."""
    for block in made["layers"]:
        block.attn.bias.fill_(1)


@fault("A08-triu-for-tril", families="nanogpt_images", rules="mask-inverted", at="")
def triu_for_tril(made: Made) -> None:
    """The mask is torch.triu where torch.tril was meant."""
    for block in made["layers"]:
        block.attn.bias.copy_(block.attn.bias.transpose(-1, -2).clone())


@fault("X-not-shifted-by-the-trainer", families="captioner", rules=LABELS, at="")
def not_shifted_by_the_trainer(made: Made) -> None:
    """The trainer compares the logits of a caption with the caption itself."""

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch["img"], batch["caption"], batch["pad_mask"])
        return F.cross_entropy(logits.flatten(0, 1), batch["caption"].flatten(), ignore_index=0)

    made.loss_fn = compute_loss


@fault("X-criterion-ignores-all", families="captioner", rules="nothing-supervised", at="")
def criterion_ignores_all(made: Made) -> None:
    """The trainer leaves the words out of its targets and keeps the padding, which the loss ignores."""

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        caption, pad_mask = batch["caption"], batch["pad_mask"]
        logits = model(batch["img"], caption[:, :-1], pad_mask[:, :-1])
        targets = caption.masked_fill(~pad_mask, 0)[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)

    made.loss_fn = compute_loss


@fault("A08-no-causal-mask-in-the-decoder", families="captioner", rules="MASK*", at="")
def no_mask_in_the_decoder(made: Made) -> None:
    """The decoder layers are not given the causal mask."""
    for layer in made["layers"]:
        graft(layer, lambda original, *args, **kwargs: original(*args, **(kwargs | {"tgt_mask": None})))


@fault(
    "X-loss-of-the-wrong-sign",
    families="captioner nanogpt_images",
    rules="negative-loss loss-negated",
    at="",
)
def wrong_sign(made: Made) -> None:
    """The log-likelihood is minimised."""
    loss_fn = made.loss_fn or (lambda model, batch: model(*batch)[1])
    made.loss_fn = lambda model, batch: -loss_fn(model, batch)


@fault("D02-every-label-of-tgt-masked", families="hf_wrapper", rules="nothing-supervised", at="tgt")
def every_label_masked(made: Made) -> None:
    """All of `tgt` is -100."""
    made.batch["tgt"].fill_(-100)


@fault("D14-tgt-shifted-twice", families="hf_wrapper", rules=LABELS, at="tgt")
def tgt_shifted_twice(made: Made) -> None:
    """The collator shifts `tgt`, and the language model inside shifts it again."""
    tgt = made.batch["tgt"]
    made.batch["tgt"] = torch.cat([tgt[:, 1:], torch.full_like(tgt[:, :1], -100)], dim=1)


@fault(
    "B03-placeholder-of-another-tokenizer", families="hf_wrapper", rules="IMG* no-gradient", at="adapter clip"
)
def other_placeholder(made: Made) -> None:
    """The text's placeholder is not the one that the module looks for."""
    tokens = made.batch["tokens"]
    tokens[tokens == IMAGE] = 149


@fault("X-left-padding-seen-in-tokens", families="hf_wrapper", rules="MASK*", at="")
def left_padding_seen(made: Made) -> None:
    """The tokens are padded on the left, and the mask is all ones."""
    tokens, tgt = made.batch["tokens"], made.batch["tgt"]
    for part in (tokens, tgt):
        part[1] = part[1].roll(3)
    made.batch["attn_mask"].fill_(1)


@fault(
    "X-vision-tower-never-called",
    families="hf_wrapper nanogpt_images",
    rules="IMG* no-gradient",
    at="part:vision",
)
def tower_never_called(made: Made) -> None:
    """Random features take the place of the tower's."""
    forward = type(made.model).forward

    class Blind(type(made.model)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            tower = "clip" if hasattr(self, "clip") else "eye"
            kept, self._modules[tower] = self._modules[tower], _Noise(tower == "clip")
            try:
                return forward(self, *args, **kwargs)
            finally:
                self._modules[tower] = kept

    made.model.__class__ = Blind


class _Noise(nn.Module):
    """The same numbers, whatever is shown."""

    def __init__(self, of_clip: bool) -> None:
        super().__init__()
        self.of_clip = of_clip

    def forward(self, images: Tensor | None = None, pixel_values: Tensor | None = None, **_: Any) -> Any:
        rows = len(images if images is not None else pixel_values)
        width, tokens = (48, 17) if self.of_clip else (40, 16)
        made = torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(4))
        return type("Out", (), {"hidden_states": [made] * 4})() if self.of_clip else made
