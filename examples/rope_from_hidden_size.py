"""A small vision-language model whose forward pass fails in the rotary embedding.

python examples/rope_from_hidden_size.py
vlmdoctor check examples/rope_from_hidden_size.py:build
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab_size: int = 680
    hidden_size: int = 320
    num_heads: int = 10
    num_layers: int = 8
    max_length: int = 128
    rope_theta: float = 10000.0
    image_token: int = 3


def rotary_tables(dim, length, theta):
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def apply_rotary(q, k, cos, sin):
    q = q * cos + rotate_half(q) * sin
    k = k * cos + rotate_half(k) * sin
    return q, k


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.hidden_size // config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        batch, length, hidden = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = apply_rotary(q, k, cos[:length], sin[:length])
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(x.transpose(1, 2).reshape(batch, length, hidden))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden = config.hidden_size
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = Attention(config)
        self.mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        cos, sin = rotary_tables(config.hidden_size, config.max_length, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.norm(x)


class TinyVLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_encoder = nn.Sequential(nn.Conv2d(3, 64, 8, 8), nn.GELU(), nn.Conv2d(64, 64, 1))
        self.vision_proj = nn.Linear(64, config.hidden_size)
        self.lm = LanguageModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, input_ids, pixel_values, labels):
        x = self.lm.embed_tokens(input_ids)
        features = self.vision_proj(self.vision_encoder(pixel_values).flatten(2).transpose(1, 2))
        x = x.masked_scatter((input_ids == self.config.image_token)[..., None], features.to(x.dtype))
        logits = self.lm_head(self.lm(x))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def make_batch(config, generator, size=8):
    """Each image has one bright cell of nine; the answer after the question tells which."""
    cell = torch.randint(0, 9, (size,), generator=generator)
    pixels = torch.rand(size, 3, 3, 3, generator=generator) * 0.3
    pixels[torch.arange(size), :, cell // 3, cell % 3] = 1.0
    image = torch.full((size, 9), config.image_token)
    question = torch.arange(10, 16).repeat(size, 1)
    answer = torch.stack([100 + cell, torch.full((size,), 2)], dim=1)
    input_ids = torch.cat([image, question, answer], dim=1)
    labels = input_ids.clone()
    labels[:, :-2] = -100
    pixel_values = pixels.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return {"input_ids": input_ids, "pixel_values": pixel_values, "labels": labels}


def build():
    torch.manual_seed(0)
    config = Config()
    model = TinyVLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    return model, make_batch(config, torch.Generator().manual_seed(0)), optimizer


def main():
    model, _, optimizer = build()
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        loss = model(**make_batch(model.config, generator))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"[Train Epoch 1] step: {step}, loss: {loss.item():.4f}")


if __name__ == "__main__":
    main()
