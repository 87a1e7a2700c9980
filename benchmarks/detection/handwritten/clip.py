"""Contrastive, in the manner of CLIP: two towers, no language modelling, the loss outside of the model."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


def encoder(dim, layers):
    layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class CLIP(nn.Module):
    def __init__(self, vocab=120, dim=48, joint=32):
        super().__init__()
        self.visual = nn.ModuleDict({"conv1": nn.Conv2d(3, dim, 8, 8), "transformer": encoder(dim, 2)})
        self.visual_projection = nn.Linear(dim, joint, bias=False)
        self.token_embedding = nn.Embedding(vocab, dim)
        self.positional_embedding = nn.Parameter(torch.randn(16, dim) * 0.01)
        self.transformer = encoder(dim, 2)
        self.text_projection = nn.Linear(dim, joint, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def forward(self, image, text):
        patches = self.visual["conv1"](image).flatten(2).transpose(1, 2)
        image = self.visual_projection(self.visual["transformer"](patches).mean(1))
        words = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        text = self.text_projection(self.transformer(words)[:, -1])
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1), self.logit_scale.exp()


def contrastive_loss(model, batch):
    """Each image against each text of the batch."""
    image, text, scale = model(**batch)
    logits = scale * image @ text.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def build():
    """(model, batch, loss_fn)"""
    image = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    text = torch.randint(5, 120, (6, 12), generator=torch.Generator().manual_seed(0))
    return CLIP(), {"image": image, "text": text}, contrastive_loss
