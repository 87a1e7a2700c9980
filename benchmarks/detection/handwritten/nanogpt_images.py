"""In the manner of nanoGPT: the batch is a tuple (idx, targets, images), -1 is ignored, (logits, loss)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int = 48
    vocab_size: int = 130
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    n_img: int = 16


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.n_embd = config.n_head, config.n_embd
        size = config.block_size
        self.register_buffer("bias", torch.tril(torch.ones(size, size)).view(1, 1, size, size))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.GELU(),
            nn.Linear(4 * config.n_embd, config.n_embd),
        )

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Eye(nn.Module):
    """A few convolutions; the picture becomes 16 vectors."""

    def __init__(self, width):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 32, 4, 4), nn.Conv2d(32, width, 2, 2)
        self.n = nn.LayerNorm(width)

    def forward(self, images):
        return self.n(self.c2(F.gelu(self.c1(images))).flatten(2).transpose(1, 2))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.hp = config
        self.eye = Eye(40)
        self.see = nn.Linear(40, config.n_embd)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "h": nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx, targets=None, images=None):
        tok_emb = self.transformer.wte(idx)
        x = torch.cat((self.see(self.eye(images)), tok_emb), dim=1) if images is not None else tok_emb
        t = x.size(1)
        x = x + self.transformer.wpe(torch.arange(t, device=idx.device))
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x[:, t - idx.size(1) :]))
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return logits, loss


def build():
    """(model, batch, None): the batch is a tuple, and targets are already one ahead."""
    text = torch.randint(3, 130, (4, 15), generator=torch.Generator().manual_seed(0))
    idx, targets = text[:, :-1].clone(), text[:, 1:].clone()
    targets[:, :6] = -1
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return GPT(GPTConfig()), (idx, targets, images), None
