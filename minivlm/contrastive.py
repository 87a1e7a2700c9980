"""Stage `clip`: the encoder learns which text belongs to which picture, before any decoder reads from it.

Shapes:
    B pairs, P patches, V vision width, W width of the shared space, L text tokens

    pixel_values [B, 3, S, S] -> encoder [B, P, V] -> mean [B, V] -> linear, unit length [B, W] --.
                                                                                    similarity [B, B]
    text_ids [B, L] -> mean of token embeddings [B, W] -> linear, unit length [B, W] -------------'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from minivlm.evaluate import even_chunks
from minivlm.progress import Progress, nothing

PADDING = -1
Pair = tuple[Any, str, int]


class ContrastiveHead(nn.Module):
    """From pooled features and from a text's tokens into one space.

    A bag of tokens is text encoder enough for names and captions.
    """

    def __init__(self, vision_width: int, vocab_size: int, width: int = 128) -> None:
        super().__init__()
        self.image = nn.Linear(vision_width, width, bias=False)
        self.tokens = nn.Embedding(vocab_size, width)
        self.text = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, features: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor]:
        """features [B, P, V], text_ids [B, L] -> two [B, W] of unit length."""
        real = (text_ids != PADDING)[..., None]  # [B, L, 1]
        words = (self.tokens(text_ids.clamp(min=0)) * real).sum(1) / real.sum(1)
        return F.normalize(self.image(features.mean(1)), dim=-1), F.normalize(self.text(words), dim=-1)


class ContrastiveModel(nn.Module):
    """The encoder of a minivlm with a head for this stage only; the encoder is shared, not copied."""

    def __init__(self, vision_encoder: nn.Module, vision_width: int, vocab_size: int) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.contrastive_head = ContrastiveHead(vision_width, vocab_size)

    def forward(
        self,
        pixel_values: Tensor,
        text_ids: Tensor,
        labels: Tensor,
        num_items_in_batch: int | Tensor | None = None,
        **_: Any,
    ) -> ModelOutput:
        """The symmetric InfoNCE loss. Pairs with the same label say the same: all of them count as right."""
        images, texts = self.contrastive_head(self.vision_encoder(pixel_values), text_ids)
        logits = (images @ texts.T).float() * self.contrastive_head.log_scale.exp().clamp(max=100)  # [B, B]
        same = (labels[:, None] == labels).float()
        targets = same / same.sum(1, keepdim=True)
        losses = F.cross_entropy(logits, targets, reduction="sum") + F.cross_entropy(
            logits.T, targets, reduction="sum"
        )
        return ModelOutput(
            loss=losses / 2 / (len(labels) if num_items_in_batch is None else num_items_in_batch),
            logits=logits,
        )


class Pairs:
    """The contrastive pairs of a dataset, by index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.endless, self.blocks = dataset.endless, dataset.blocks

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Pair:
        return self.dataset.contrastive_pair(i)


class PairCollator:
    """From (image, text, label) to pixel_values [B, 3, S, S], text_ids [B, L] padded with -1, labels [B]."""

    def __init__(self, processor: Any, images: str = "real") -> None:
        self.processor = processor
        self.images = images
        self._ids: dict[str, list[int]] = {}

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        images = [self.processor.image_processor.preprocess_array(image) for image, _, _ in pairs]
        pixels = torch.from_numpy(np.stack(images))
        if self.images == "shuffled":
            pixels = pixels.roll(1, 0)
        elif self.images == "blank":
            pixels = torch.zeros_like(pixels)
        ids = [torch.tensor(self._encode(text)) for _, text, _ in pairs]
        text_ids = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PADDING)
        labels = torch.tensor([label for _, _, label in pairs])
        return {"pixel_values": pixels, "text_ids": text_ids, "labels": labels}

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self.processor.tokenizer.encode(text, add_special_tokens=False)
        return self._ids[text]


@torch.no_grad()
def evaluate_pairs(
    model: ContrastiveModel,
    processor: Any,
    pairs: Sequence[Pair],
    batch_size: int = 100,
    progress: Progress = nothing,
) -> dict[str, Any]:
    """How often the nearest of all texts is the right one; the record has the names of `evaluate_answers`."""
    device = next(model.parameters()).device
    texts = {label: (image, text, label) for image, text, label in pairs}
    labels = torch.tensor(list(texts), device=device)
    record: dict[str, Any] = {"samples": len(pairs)}
    done, ways = 0, ("real", "shuffled", "blank")
    for images in ways:
        suffix = "" if images == "real" else f"_{images}"
        collate = PairCollator(processor, images)
        right = loss = 0.0
        candidates = collate(list(texts.values()))["text_ids"].to(device)
        for chunk in even_chunks(pairs, batch_size):
            batch = {name: value.to(device) for name, value in collate(chunk).items()}
            features = model.vision_encoder(batch["pixel_values"])
            _, text_side = model.contrastive_head(features[:1], candidates)
            image_side, _ = model.contrastive_head(features, batch["text_ids"])
            logits = (image_side @ text_side.T).float() * model.contrastive_head.log_scale.exp()
            place = (labels == batch["labels"][:, None]).int().argmax(1)
            right += float((logits.argmax(1) == place).sum())
            loss += float(F.cross_entropy(logits, place, reduction="sum"))
            done += len(chunk)
            progress(done, len(ways) * len(pairs))
        record[f"loss{suffix}"] = loss / len(pairs)
        if images != "blank":
            record[f"accuracy{suffix}"] = right / len(pairs)
    return record
