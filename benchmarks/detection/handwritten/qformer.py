"""In the manner of BLIP-2: frozen ViT, learned queries that attend to it, and a frozen decoder behind."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F


class QFormerLayer(nn.Module):
    def __init__(self, dim, vision_dim, heads=4):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(
            dim, heads, kdim=vision_dim, vdim=vision_dim, batch_first=True
        )
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x, image):
        h = self.norm1(x)
        x = x + self.self_attn(h, h, h, need_weights=False)[0]
        x = x + self.cross_attn(self.norm2(x), image, image, need_weights=False)[0]
        return x + self.mlp(self.norm3(x))


class Blip(nn.Module):
    def __init__(self, vocab=170, dim=64, vision_dim=48, queries=4):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, vision_dim, 8, 8)
        self.visual_encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(vision_dim, 4, 96, 0.0, batch_first=True, norm_first=True),
            2,
            enable_nested_tensor=False,
        )
        self.ln_vision = nn.LayerNorm(vision_dim)
        self.query_tokens = nn.Parameter(torch.randn(1, queries, dim) * 0.02)
        self.Qformer = nn.ModuleList(QFormerLayer(dim, vision_dim) for _ in range(2))
        self.llm_proj = nn.Linear(dim, dim)
        self.llm_embed = nn.Embedding(vocab, dim)
        self.llm_pos = nn.Embedding(64, dim)
        self.llm = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(dim, 4, 128, 0.0, batch_first=True, norm_first=True),
            2,
            enable_nested_tensor=False,
        )
        self.llm_head = nn.Linear(dim, vocab, bias=False)
        nn.init.normal_(self.llm_embed.weight, std=0.02)
        for part in (
            self.patch_embed,
            self.visual_encoder,
            self.llm_embed,
            self.llm_pos,
            self.llm,
            self.llm_head,
        ):
            part.requires_grad_(False)

    def forward(self, samples):
        with torch.no_grad():
            image = self.visual_encoder(self.patch_embed(samples["image"]).flatten(2).transpose(1, 2))
        image = self.ln_vision(image)
        queries = self.query_tokens.expand(len(image), -1, -1)
        for layer in self.Qformer:
            queries = layer(queries, image)
        ids = samples["input_ids"]
        x = torch.cat([self.llm_proj(queries), self.llm_embed(ids)], dim=1)
        T = x.shape[1]
        x = x + self.llm_pos(torch.arange(T, device=x.device))
        mask = nn.Transformer.generate_square_subsequent_mask(T, device=x.device)
        padded = F.pad(samples["attention_mask"] == 0, (queries.shape[1], 0))
        x = self.llm(x, mask=mask.isinf(), src_key_padding_mask=padded, is_causal=False)
        logits = self.llm_head(x[:, queries.shape[1] :])
        labels = ids.masked_fill(samples["attention_mask"] == 0, -100)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss, logits=logits)


def build():
    """(model, batch, None): the model takes the batch whole."""
    ids = torch.randint(5, 160, (3, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, 7:], mask[1, 7:] = 0, 0
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Blip(), {"image": image, "input_ids": ids, "attention_mask": mask}, None
