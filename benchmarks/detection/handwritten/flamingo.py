"""In the manner of Flamingo: a frozen decoder with gated cross-attention to resampled image features."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


class PerceiverResampler(nn.Module):
    def __init__(self, dim, latents=4, heads=4):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ff = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, x):
        latents = self.latents.expand(len(x), -1, -1)
        kv = self.norm(torch.cat([x, latents], dim=1))
        latents = latents + self.attn(latents, kv, kv, need_weights=False)[0]
        return latents + self.ff(latents)


class GatedCrossAttention(nn.Module):
    def __init__(self, dim, heads=4):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.attn_gate = nn.Parameter(torch.zeros(1))  # starts as the text model that it is put into

    def forward(self, x, media):
        h = self.norm(x)
        return x + self.attn(h, media, media, need_weights=False)[0] * self.attn_gate.tanh()


class DecoderLayer(nn.Module):
    def __init__(self, dim, heads=4):
        super().__init__()
        self.cross = GatedCrossAttention(dim, heads)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.heads = heads

    def forward(self, x, media):
        x = self.cross(x, media)
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.norm2(x))


class Flamingo(nn.Module):
    def __init__(self, vocab=150, dim=48, depth=2):
        super().__init__()
        self.vision_encoder = nn.Sequential(
            nn.Conv2d(3, 24, 4, 4), nn.GELU(), nn.Conv2d(24, dim, 2, 2), nn.GroupNorm(4, dim), nn.Flatten(2)
        )
        self.perceiver = PerceiverResampler(dim)
        self.embed = nn.Embedding(vocab, dim)
        self.pos_embed = nn.Embedding(64, dim)
        self.decoder_layers = nn.ModuleList(DecoderLayer(dim) for _ in range(depth))
        self.final_norm = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def freeze_language_model(self):
        for name, parameter in self.named_parameters():
            if not ("cross" in name or "perceiver" in name or "vision_encoder" in name):
                parameter.requires_grad = False

    def forward(self, text, labels, vision_x):
        media = self.perceiver(self.vision_encoder(vision_x).transpose(1, 2))
        x = self.embed(text) + self.pos_embed(torch.arange(text.shape[1], device=text.device))
        for layer in self.decoder_layers:
            x = layer(x, media)
        logits = self.lm_head(self.final_norm(x))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def build():
    """(model, batch, None)"""
    text = torch.randint(5, 150, (3, 12), generator=torch.Generator().manual_seed(0))
    labels = text.clone()
    labels[:, :5] = -100
    model = Flamingo()
    model.freeze_language_model()
    vision_x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return model, {"text": text, "labels": labels, "vision_x": vision_x}, None
